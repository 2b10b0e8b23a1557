/**
 * Life as a daemon: detaching, pidfile, log, and telling those who wait that the sockets are ready. The options are those
 * of `criu page-server`, and mean the same.
 *
 * Node cannot fork. `-d` starts the same command line again in a session of its own, with a socket on which that one
 * passes its messages and, when it is ready, a zero byte to whoever started it.
 */
import { spawn } from 'node:child_process'
import { closeSync, statSync, writeSync } from 'node:fs'
import { resolve } from 'node:path'
import { Fault } from '../fault.ts'
import { isPipe, ownNonBlocking } from '../kernel/fd.ts'
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
  'ps-socket': { type: 'string' },
} as const

/** The part of a daemon's usage text about them. */
export const daemonHelp = `life as a daemon:
  -d, --daemon         detach: return 0 when the sockets are ready, else say why not
      --pidfile FILE   FILE holds the pid until the daemon ends
      --status-fd FD   FD gets one zero byte when the sockets are ready, and is closed
  -o, --log-file LOG   append messages to LOG, with the time, and not to stderr
  -W, --work-dir DIR   where a relative FILE or LOG is (default: the current directory)
  -v, -v4, --verbose   say the causes of failures as well
  SIGUSR1 writes a line of status. SIGTERM, SIGINT and SIGHUP end the daemon and give up
  what is in progress: a dump fails and the process runs on, unless CRIU has already
  written all images; a restore fails. The exit code is 128+n; a second signal is ignored.
  systemd: Type=notify (NOTIFY_SOCKET) is served.`

type DaemonValues = { [Name in keyof typeof daemonOptions]?: string | boolean | undefined }

/** What the options ask for, with every path made absolute. */
export interface DaemonPlan {
  detach: boolean
  pidfile: string | undefined
  log: string | undefined
  statusFd: number | undefined
  /** Descriptors that a detached daemon needs as well. */
  handedOver: number[]
}

/** Throws `USAGE` for a descriptor that is not open, `MISSING` if there is no such work directory. */
export function planDaemon(values: DaemonValues): DaemonPlan {
  const text = (name: keyof DaemonValues): string | undefined => values[name] as string | undefined
  const fd = (name: 'status-fd' | 'ps-socket', take: typeof inheritedFd): number | undefined => {
    const given = text(name)
    return given === undefined ? undefined : take(`--${name}`, given)
  }
  const workDir = resolve(text('work-dir') ?? '')
  if (statSync(workDir, { throwIfNoEntry: false })?.isDirectory() !== true) {
    throw new Fault('MISSING', `there is no directory ${workDir}`, { hint: 'make it, or choose another -W DIR' })
  }
  const inWorkDir = (path: string | undefined): string | undefined =>
    path === undefined ? undefined : resolve(workDir, path)
  const statusFd = fd('status-fd', inheritedOutput)
  const psSocket = fd('ps-socket', inheritedFd)
  return {
    detach: values.daemon === true,
    pidfile: inWorkDir(text('pidfile')),
    log: inWorkDir(text('log-file')),
    statusFd,
    handedOver: [...listenFds(), statusFd, psSocket].filter((each) => each !== undefined),
  }
}

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
