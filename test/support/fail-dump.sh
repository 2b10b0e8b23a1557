#!/bin/sh
# For criu --action-script: makes a dump fail in its last moment, after all other scripts.
[ "$CRTOOLS_SCRIPT_ACTION" != post-dump ]
