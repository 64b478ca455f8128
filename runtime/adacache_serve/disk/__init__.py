"""Files and locks that the server and its workers share on one machine."""
