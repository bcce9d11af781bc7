"""The lab: the services that stages share, and the sessions with them."""
