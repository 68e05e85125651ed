"""The tests, and the programs that measure and attack; README.md beside this file says which."""
