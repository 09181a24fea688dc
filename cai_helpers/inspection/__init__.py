"""What a person looks at and decides: pairs and answers one by one, their word diff, judging blind, talking to both."""
