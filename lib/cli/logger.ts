/**
 * Where a command's messages go: to stderr, or into the log of a daemon that has one. A daemon that was started with
 * `-d` also sends them to its starter until it is ready.
 */
import { closeSync, constants, writeSync } from 'node:fs'
import { Fault } from '../fault.ts'
import { openOwnFile } from '../kernel/own-file.ts'
import { inheritedFd } from './inherited-fds.ts'

/** The environment variable of a detached daemon with the descriptor of the socket to its starter. */
export const STARTER = 'FERRY_STARTER_FD'
/** Ends the messages to the starter. */
export const READY = '\0'

export interface Logger {
  /** Whether this process was started by `detach`. */
  readonly detached: boolean
  /** From now on messages go into the file `path`, with the time. Throws like `openLog`. */
  logTo(path: string): void
  /** Writes `text`, which is whole lines. */
  say(text: string): void
  /** Writes why the command ends: to stderr also where there is a log. */
  sayLast(text: string): void
  /** Tells the starter that we are ready, and closes the socket to it. */
  ready(): void
}

/**
 * The descriptor of the socket to our starter, if there is one. It is taken out of the environment, which programs that
 * we start inherit. Throws `USAGE`.
 */
export function starterFd(): number | undefined {
  const { [STARTER]: text } = process.env
  delete process.env[STARTER]
  return text === undefined ? undefined : inheritedFd(STARTER, text)
}

/** `starter`: the descriptor of the socket to the process that detached us. */
export function openLogger(starter?: number): Logger {
  const detached = starter !== undefined
  let log: number | undefined
  // Where nobody reads our stderr the work goes on.
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
 * A descriptor that appends to `path`, which is made with mode 0600 if it is missing. Throws `IO`, and `EXISTS` if
 * `path` is no file of our own user.
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

/** Writes what can be written: neither a full disk nor a starter that was killed stops a daemon. */
function write(fd: number, text: string): void {
  try {
    writeSync(fd, text)
  } catch {}
}

function stamped(text: string): string {
  return text.replace(/^(?=.)/gm, `${new Date().toISOString()} `)
}
