/**
 * The gate: CRIU kills the dumped tasks only after we say so.
 *
 * CRIU runs its action script at `post-dump`, when every image is written and the tasks are still frozen; if the script fails,
 * CRIU lets the tasks run on (seen with 4.1.1 to 4.3). Ours waits for a lock that we hold and then looks for a file that we make:
 *
 *     all images are out of the pipes    go(): make the file, drop the lock    exit 0, the tasks are killed
 *     something failed                   close(): drop the lock               exit 1, the tasks run on
 *     we were killed                     the kernel drops the lock            exit 1, the tasks run on
 *
 * flock(1) is part of util-linux, which every Debian has; a shell and a lock take 4 ms of the freeze (medians of 15
 * runs), where starting a node would take 60.
 */
import { closeSync, openSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Fault } from '../fault.ts'
import { asFd, check } from '../kernel/fd.ts'
import { flock, LOCK_EX } from '../kernel/libc.ts'

export interface Gate {
  /** For `criu dump --action-script`. */
  script: string
  /** Lets CRIU kill the tasks. */
  go(): void
  /** Opens the gate for nobody: unless `go` came first, CRIU lets the tasks run on. May be called twice. */
  close(): void
}

/** A closed gate in the private directory `directory`. */
export function closedGate(directory: string): Gate {
  const [script, lock, verdict] = [join(directory, 'post-dump'), join(directory, 'lock'), join(directory, 'go')]
  const fd = made(() => {
    writeFileSync(script, postDump, { mode: 0o700 })
    return openSync(lock, 'wx', 0o600)
  })
  check(flock(asFd(fd), LOCK_EX), 'flock')
  let held = true
  const close = (): void => {
    if (held) closeSync(fd)
    held = false
  }
  return {
    script,
    go() {
      if (!held) return
      writeFileSync(verdict, '', { mode: 0o600 })
      close()
    },
    close,
  }
}

/** A full disk is an `IO`. */
function made<Result>(make: () => Result): Result {
  try {
    return make()
  } catch (cause) {
    throw new Fault('IO', `cannot write a temporary file (${(cause as NodeJS.ErrnoException).code})`, { cause })
  }
}

const postDump = `#!/bin/sh
[ "$CRTOOLS_SCRIPT_ACTION" = post-dump ] || exit 0
cd "$(dirname "$0")" && flock -s lock true && [ -e go ]
`
