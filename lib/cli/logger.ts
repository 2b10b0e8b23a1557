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

/**
 * The descriptor of the socket to our starter, if there is one. It is taken out of the environment, which programs that
 * we start inherit. Throws `USAGE`.
 */
export function starterFd(): number | undefined {
  const { [STARTER]: text } = process.env
  delete process.env[STARTER]
  return text === undefined ? undefined : inheritedFd(STARTER, text)
}

export class Logger {
  /** Whether this process was started by `detach`. */
  readonly detached: boolean
  /** The descriptor of the socket to the process that detached us, until we are ready. */
  #starter: number | undefined
  #log: number | undefined

  constructor(starter?: number) {
    this.detached = starter !== undefined
    this.#starter = starter
    // Where nobody reads our stderr the work goes on.
    process.stderr.on('error', () => {})
  }

  /** From now on messages go into the file `path`, with the time. Throws like `openLog`. */
  logTo(path: string): void {
    this.#log = openLog(path)
  }

  /** Writes `text`, which is whole lines. */
  say(text: string): void {
    if (this.#log !== undefined) write(this.#log, text.replace(/^(?=.)/gm, `${new Date().toISOString()} `))
    if (this.#starter !== undefined) write(this.#starter, text)
    if (this.#log === undefined && this.#starter === undefined) process.stderr.write(text)
  }

  /** Writes why the command ends: to stderr also where there is a log. */
  sayLast(text: string): void {
    this.say(text)
    // The stderr of a detached daemon is its log, or nothing.
    if (this.#log !== undefined && !this.detached) process.stderr.write(text)
  }

  /** Tells the starter that we are ready, and closes the socket to it. */
  ready(): void {
    if (this.#starter === undefined) return
    write(this.#starter, READY)
    closeSync(this.#starter)
    this.#starter = undefined
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
