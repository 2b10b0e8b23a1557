/**
 * Life as a daemon: detaching, the pidfile, the log, and telling whoever waits for it that the sockets are ready. The
 * options have the names and the meaning that they have for `criu page-server`.
 *
 * Node cannot fork. `-d` starts the same command line again in a session of its own. The new process has a socket to
 * its starter, on which it sends its messages until it is ready, and then a zero byte.
 */
import { spawn } from 'node:child_process'
import { closeSync, statSync, writeSync } from 'node:fs'
import { resolve } from 'node:path'
import { Fault } from '../fault.ts'
import { isPipe, ownNonBlocking } from '../kernel/fd.ts'
import { notify } from '../kernel/sd-notify.ts'
import type { ValuesOf } from './common-options.ts'
import { closeInherited, inheritedFd, inheritedOutput, listenFds } from './inherited-fds.ts'
import { type Logger, openLog, READY, STARTER } from './logger.ts'
import { holdPidfile } from './pidfile.ts'

/** The options that proxy and cache have in common. */
export const daemonOptions = {
  daemon: { type: 'boolean', short: 'd' },
  pidfile: { type: 'string' },
  'status-fd': { type: 'string' },
  'log-file': { type: 'string', short: 'o' },
  'work-dir': { type: 'string', short: 'W' },
} as const

/** The part of a daemon's usage text about them. */
export const daemonHelp = `as a daemon:
  -d, --daemon         detach: exit with 0 when the sockets are ready, else report the error
      --pidfile FILE   keep the pid in FILE until the daemon ends
      --status-fd FD   write one zero byte to FD when the sockets are ready, and close it
  -o, --log-file LOG   append messages to LOG, with the time, instead of writing to stderr
  -W, --work-dir DIR   take a relative FILE or LOG from DIR (default: the current directory)
  SIGUSR1 writes a line of status. SIGTERM, SIGINT and SIGHUP end the daemon and abort what
  is in progress: a dump fails and its process runs on, unless CRIU has already written
  all images; a restore fails. The exit code is 128+n. A second signal is ignored.
  systemd: Type=notify is supported (NOTIFY_SOCKET).`

/** `ps-socket` is passed on to a daemon; what it is for, each command says. */
export type DaemonValues = ValuesOf<typeof daemonOptions> & { 'ps-socket'?: string }

type DaemonPlan = ReturnType<typeof readDaemonOptions>

/**
 * What the options ask for, with every path made absolute. Throws `USAGE` for a descriptor that is not open, `MISSING`
 * if there is no such work directory.
 */
export function readDaemonOptions(values: DaemonValues) {
  const { daemon, pidfile, 'status-fd': status, 'log-file': log, 'work-dir': dir = '', 'ps-socket': socket } = values
  const workDir = resolve(dir)
  if (statSync(workDir, { throwIfNoEntry: false })?.isDirectory() !== true) {
    throw new Fault('MISSING', `there is no directory ${workDir}`, { hint: 'make it, or choose another -W DIR' })
  }
  const inWorkDir = (path: string | undefined): string | undefined =>
    path === undefined ? undefined : resolve(workDir, path)
  const statusFd = status === undefined ? undefined : inheritedOutput('--status-fd', status)
  const psSocket = socket === undefined ? undefined : inheritedFd('--ps-socket', socket)
  return {
    detach: daemon === true,
    pidfile: inWorkDir(pidfile),
    log: inWorkDir(log),
    statusFd,
    /** Descriptors that a detached daemon needs as well. */
    handedOver: [...listenFds(), statusFd, psSocket].filter((each) => each !== undefined),
  }
}

/**
 * Takes the log and the pidfile, which goes when the process ends. The result tells whoever waits for it that the
 * sockets are ready; it is called once. Throws `EXISTS` or `IO`.
 */
export function beginLife(plan: DaemonPlan, name: string, logger: Logger, signal: AbortSignal): () => void {
  const tellSystemd = (state: string): void => {
    try {
      notify(state)
    } catch (error) {
      logger.say(`${name}: cannot tell systemd ${state}: ${(error as Error).message}\n`)
    }
  }
  if (plan.log !== undefined) logger.logTo(plan.log)
  // What systemd gave to our starter is ours.
  if (logger.detached && process.env.LISTEN_PID === String(process.ppid)) process.env.LISTEN_PID = String(process.pid)
  if (plan.pidfile !== undefined) process.on('exit', holdPidfile(plan.pidfile))
  signal.addEventListener('abort', () => tellSystemd('STOPPING=1'))
  return () => {
    if (plan.statusFd !== undefined) writeZero(plan.statusFd)
    tellSystemd('READY=1')
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
