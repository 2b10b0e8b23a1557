/**
 * Where a command's messages go: to stderr; those of a daemon into its log, if it has one. A daemon that was started with -d
 * also tells whoever started it, until it is ready.
 */
import { closeSync, constants, writeSync } from 'node:fs'
import { Fault } from '../fault.ts'
import { openOwnFile } from '../kernel/own-file.ts'
import { inheritedFd } from './inherited-fds.ts'

/** In the environment of a detached daemon: the descriptor that its starter listens on. */
export const STARTER = 'FERRY_STARTER_FD'
/** What the starter waits for; everything before it is messages. */
export const READY = '\0'

export interface Logger {
  /** Whether this process was started by `detach`. */
  readonly detached: boolean
  /** From now on messages go into the file, with the time. Throws like `openLog`. */
  logTo(path: string): void
  /** Whole lines. */
  say(text: string): void
  /** What ends the command: on stderr even where there is a log. */
  sayLast(text: string): void
  /** Tells the starter, which hears nothing more. */
  ready(): void
}

/**
 * The descriptor on which our starter listens, if it does; programs that we start do not inherit its number. Throws
 * `USAGE`.
 */
export function starterFd(): number | undefined {
  const { [STARTER]: text } = process.env
  delete process.env[STARTER]
  return text === undefined ? undefined : inheritedFd(STARTER, text)
}

/** `starter`: the descriptor on which whoever detached us listens. */
export function openLogger(starter?: number): Logger {
  const detached = starter !== undefined
  let log: number | undefined
  // Who closes our stderr does not want to know; the work goes on.
  process.stderr.on('error', () => {})

  function say(text: string): void {
    if (log !== undefined) write(log, stamped(text))
    if (starter !== undefined) write(starter, text)
    if (log === undefined && starter === undefined) process.stderr.write(text)
  }

  return {
    detached,
    logTo(path) {
      log = openLog(path)
    },
    say,
    sayLast(text) {
      say(text)
      // The stderr of a detached daemon is its log, or nothing.
      if (log !== undefined && !detached) process.stderr.write(text)
    },
    ready() {
      if (starter === undefined) return
      write(starter, READY)
      closeSync(starter)
      starter = undefined
    },
  }
}

/**
 * A descriptor that appends to `path`, which is made with mode 0600 if it is missing. Throws `IO`, and `EXISTS` for
 * what is no file of ours.
 */
export function openLog(path: string): number {
  const { O_APPEND, O_CREAT, O_WRONLY } = constants
  try {
    return openOwnFile(path, O_WRONLY | O_APPEND | O_CREAT)
  } catch (cause) {
    if (cause instanceof Fault) throw cause
    throw new Fault('IO', `cannot write to the log ${path} (${(cause as NodeJS.ErrnoException).code})`, {
      hint: 'is its directory there, and may you write to it?',
      cause,
    })
  }
}

/** A full disk, or a starter that was killed, does not stop a daemon. */
function write(fd: number, text: string): void {
  try {
    writeSync(fd, text)
  } catch {}
}

function stamped(text: string): string {
  return text.replace(/^(?=.)/gm, `${new Date().toISOString()} `)
}
