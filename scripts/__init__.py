"""What installs, shows, tests and measures the project."""
