#!/bin/sh
# For criu --action-script: stops whoever started the criu that runs it, when its tasks are let go and do not run yet.
[ "$CRTOOLS_SCRIPT_ACTION" = pre-resume ] && read -r _ _ _ starter _ <"/proc/$PPID/stat" && kill -STOP "$starter"
exit 0
