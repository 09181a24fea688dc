class Error(Exception):
    """Base class of google.colab's errors."""


class AuthorizationError(Error):
    pass


class MessageError(Error):
    """The front end answered a message with an error, as where access to Drive is denied."""


class RuntimeManagementError(Error):
    pass


class WidgetException(Error):
    pass
