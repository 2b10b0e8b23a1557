/**
 * Life as a daemon: detaching, the pidfile, the log, and telling whoever waits for it that the sockets are ready.
 *
 * Node cannot fork. `-d` starts the same command line again in a session of its own. The new process has a socket to
 * its starter, on which it sends its messages until it is ready, and then a zero byte.
 */
import { spawn } from 'node:child_process'
import { closeSync, writeSync } from 'node:fs'
import { Fault } from '../fault.ts'
import { isPipe, ownNonBlocking } from '../kernel/fd.ts'
import type { DaemonPlan } from './daemon-options.ts'
import { closeInherited } from './inherited-fds.ts'
import { type Logger, openLog, READY, STARTER } from './logger.ts'
import { holdPidfile } from './pidfile.ts'

/**
 * Takes the log and the pidfile, which goes when the process ends. `tell` tells systemd a state. The result tells
 * whoever waits for it that the sockets are ready; it is called once. Throws `EXISTS` or `IO`.
 */
export function beginLife(
  plan: DaemonPlan,
  logger: Logger,
  tell: (state: string) => void,
  signal: AbortSignal,
): () => void {
  if (plan.log !== undefined) logger.logTo(plan.log)
  // What systemd gave to our starter is ours.
  if (logger.detached && process.env.LISTEN_PID === String(process.ppid)) process.env.LISTEN_PID = String(process.pid)
  if (plan.pidfile !== undefined) process.on('exit', holdPidfile(plan.pidfile))
  signal.addEventListener('abort', () => tell('STOPPING=1'))
  return () => {
    if (plan.statusFd !== undefined) writeZero(plan.statusFd)
    tell('READY=1')
    logger.ready()
  }
}

/** Writes without waiting: the reader may be gone, or may not read from a pipe that is full. */
function writeZero(fd: number): void {
  const own = isPipe(fd) ? ownNonBlocking(fd, 'write') : fd
  try {
    writeSync(own, Buffer.of(0))
  } catch {}
  if (own !== fd) closeSync(own)
  closeSync(fd)
}

/**
 * Starts this command again, detached. Returns 0 when that is ready, or its exit code if it ends before. Its messages
 * until then are written here.
 */
export async function detach(plan: DaemonPlan, name: string, logger: Logger, signal: AbortSignal): Promise<number> {
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
      if (messages !== '') logger.say(messages)
      if (end >= 0 && !signal.aborted) done(0)
    })
    child.once('close', (code, killer) => {
      if (killer !== null) logger.say(`${name}: error: the daemon was ended by ${killer} before it was ready\n`)
      done(code || 1)
    })
  })
}
