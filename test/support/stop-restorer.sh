#!/bin/sh
# For criu --action-script: stops whoever started the criu that runs it, when its tasks are let go and do not run yet.
[ "$CRTOOLS_SCRIPT_ACTION" = pre-resume ] && kill -STOP "$(ps -o ppid= -p $PPID | tr -d ' ')"
exit 0
