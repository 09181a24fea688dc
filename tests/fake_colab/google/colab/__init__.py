"""What tests take for Colab: the modules, signatures and errors of google.colab that are used, on folders of this machine.

A test sets what Colab holds: userdata.SECRETS, drive.CLOUD, drive.DENIED; it reads files.DOWNLOADED.
"""
