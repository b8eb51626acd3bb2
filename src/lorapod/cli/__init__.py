"""What a person types. One module a command or group of commands, imported only when it is used."""
