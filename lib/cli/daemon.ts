/**
 * Life as a daemon: detaching, pidfile, log, and telling those who wait that the sockets are ready.
 *
 * Node cannot fork. `-d` starts the same command line again in a session of its own, with a socket on which that one
 * passes its messages and, when it is ready, a zero byte to whoever started it.
 */
import { spawn } from 'node:child_process'
import { closeSync, writeSync } from 'node:fs'
import { Fault } from '../fault.ts'
import { isPipe, ownNonBlocking } from '../kernel/fd.ts'
import type { DaemonPlan } from './daemon-options.ts'
import { closeInherited } from './inherited-fds.ts'
import { type Logger, openLog, READY, STARTER } from './logger.ts'
import { holdPidfile } from './pidfile.ts'

export interface Life {
  /** The sockets are there: whoever waits for it is told, once. */
  ready(): void
}

/** Takes the log and the pidfile; the pidfile goes when the process ends. Throws `EXISTS` or `IO`. */
export function beginLife(plan: DaemonPlan, voice: Logger, tell: (state: string) => void, signal: AbortSignal): Life {
  if (plan.log !== undefined) voice.logTo(plan.log)
  // What systemd gave to our starter is ours.
  if (voice.detached && process.env.LISTEN_PID === String(process.ppid)) process.env.LISTEN_PID = String(process.pid)
  if (plan.pidfile !== undefined) process.on('exit', holdPidfile(plan.pidfile))
  signal.addEventListener('abort', () => tell('STOPPING=1'))
  let { statusFd } = plan
  return {
    ready() {
      if (statusFd !== undefined) writeZero(statusFd)
      statusFd = undefined
      tell('READY=1')
      voice.ready()
    },
  }
}

/** Whoever asked may have gone, or may not read from a pipe that is full: a daemon waits for neither. */
function writeZero(fd: number): void {
  const own = isPipe(fd) ? ownNonBlocking(fd, 'write') : fd
  try {
    writeSync(own, Buffer.of(0))
  } catch {}
  if (own !== fd) closeSync(own)
  closeSync(fd)
}

/**
 * Starts this command again, detached, and returns its exit code if it ends before it is ready, else 0. Its
 * messages until then are said here.
 */
export async function detach(plan: DaemonPlan, name: string, voice: Logger, signal: AbortSignal): Promise<number> {
  closeInherited(plan.handedOver)
  const log = plan.log === undefined ? 'ignore' : openLog(plan.log)
  const stdio: ('ignore' | 'pipe' | number)[] = ['ignore', log, log]
  for (const fd of plan.handedOver) stdio[fd] = fd
  let starter = 3
  while (stdio[starter] !== undefined) starter++
  stdio[starter] = 'pipe'
  const child = spawn(process.execPath, [...process.execArgv, ...process.argv.slice(1)], {
    detached: true,
    stdio: Array.from(stdio, (each) => each ?? 'ignore'),
    env: { ...process.env, [STARTER]: String(starter) },
  })
  signal.addEventListener('abort', () => child.kill())
  return new Promise((done, fail) => {
    child.once('error', (cause) => fail(new Fault('IO', `cannot start the daemon (${cause.message})`, { cause })))
    child.stdio[starter]?.on('data', (chunk: Buffer) => {
      const text = chunk.toString()
      const end = text.indexOf(READY)
      const messages = end < 0 ? text : text.slice(0, end)
      if (messages !== '') voice.say(messages)
      if (end >= 0 && !signal.aborted) done(0)
    })
    child.once('close', (code, killer) => {
      if (killer !== null) voice.say(`${name}: error: the daemon was ended by ${killer} before it was ready\n`)
      done(code || 1)
    })
  })
}
