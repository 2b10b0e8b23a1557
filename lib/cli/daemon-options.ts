/** Life as a daemon: the options of proxy and cache, with the names and the meaning that they have for `criu page-server`. */
import { statSync } from 'node:fs'
import { resolve } from 'node:path'
import { Fault } from '../fault.ts'
import type { ValuesOf } from './common-options.ts'
import { inheritedFd, inheritedOutput, listenFds } from './inherited-fds.ts'

/** The options that proxy and cache have in common. */
export const daemonOptions = {
  daemon: { type: 'boolean', short: 'd' },
  pidfile: { type: 'string' },
  'status-fd': { type: 'string' },
  'log-file': { type: 'string', short: 'o' },
  'work-dir': { type: 'string', short: 'W' },
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

/** `ps-socket` is passed on to a daemon; what it is for, each command says. */
export type DaemonValues = ValuesOf<typeof daemonOptions> & { 'ps-socket'?: string }

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
export function readDaemonOptions(values: DaemonValues): DaemonPlan {
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
    handedOver: [...listenFds(), statusFd, psSocket].filter((each) => each !== undefined),
  }
}
