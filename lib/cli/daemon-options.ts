/**
 * Life as a daemon: the options of proxy and cache, with the names and the meaning that they have for `criu
 * page-server`.
 */
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
