"""What tests against effectonce need: real servers and pytest fixtures."""
