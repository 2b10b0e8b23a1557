/**
 * Processes that are not our children: who they are, and when they end. A pidfd is not fooled by a number that is used
 * again.
 */
import { closeSync, constants, openSync, readdirSync, readFileSync } from 'node:fs'
import { asFd, tryLock } from './fd.ts'
import { pidfdOpen, pidfdSendSignal, SIGKILL } from './libc.ts'
import { closeFd, readable } from './readiness.ts'

export interface Process {
  readonly pid: number
  /** Resolves when the process has ended (its parent need not have heard of it); rejects after `close`. */
  readonly ended: Promise<void>
  kill(): void
  /** Forgets it. May be called twice. */
  close(): void
}

/** Undefined where there is no such process. */
export function openProcess(pid: number): Process | undefined {
  const result = pid > 0 ? pidfdOpen(pid) : -1
  if (result < 0) return undefined
  const pidfd = asFd(result)
  const ended = readable(pidfd)
  ended.catch(() => {})
  let open = true
  return {
    pid,
    ended,
    kill: () => void pidfdSendSignal(pidfd, SIGKILL),
    close() {
      if (open) closeFd(pidfd)
      open = false
    },
  }
}

/** Resolves when it has ended; never where `process` is of a number that cannot be seen from here. */
export function endOf(pid: number, process: Process | undefined): Promise<void> {
  if (process !== undefined) return process.ended
  return pid > 0 && !isRunning(pid) ? Promise.resolve() : new Promise(() => {})
}

/** The processes that `tracer` holds with ptrace: the frozen tree, while a criu dumps it. */
export function tracedBy(tracer: number): number[] {
  if (tracer < 1) return []
  return readdirSync('/proc')
    .map(Number)
    .filter((pid) => pid > 0 && statusOf(pid, 'TracerPid') === String(tracer))
}

/** Whether there is such a process, zombies included. */
export function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM'
  }
}

/**
 * When the process was started, in clock ticks since the boot: with its number, its name for ever. Undefined if it is
 * gone.
 */
export function startTime(pid: number): number | undefined {
  const stat = procFile(pid, 'stat')
  const [state, ...fields] = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  if (stat === '' || state === 'Z' || state === 'X') return undefined
  return Number(fields[18])
}

/** Whether it was sent SIGKILL and has not ended yet: tearing down a large memory takes a while. */
export function isDying(pid: number): boolean {
  // In this order: a signal that is pending no more has made the process exit.
  if (hasSignal(pid, 'SigPnd', SIGKILL_BIT) || hasSignal(pid, 'ShdPnd', SIGKILL_BIT)) return true
  const flags = Number(procFile(pid, 'stat').split(') ')[1]?.split(' ')[6])
  return (flags & PF_EXITING) !== 0
}

const SIGKILL_BIT = 1n << 8n
const SIGTERM_BIT = 1n << 14n
/** Linux, include/linux/sched.h. */
const PF_EXITING = 0x4

/** Its parent; undefined if it is gone. */
export function parentOf(pid: number): number | undefined {
  const found = statusOf(pid, 'PPid')
  return found === undefined ? undefined : Number(found)
}

/** Its children, of all its threads, also those that have ended and wait for it to take note. */
export function childrenOf(pid: number): number[] {
  const files = threadsOf(pid).map((thread) => procFile(pid, `task/${thread}/children`))
  return files.join('').split(' ').map(Number).filter(Boolean)
}

function threadsOf(pid: number): string[] {
  try {
    return readdirSync(`/proc/${pid}/task`)
  } catch {
    return []
  }
}

/** Its children, and theirs. */
export function descendants(pid: number): number[] {
  return childrenOf(pid).flatMap((child) => [child, ...descendants(child)])
}

/**
 * The marks of changed pages of the process and its descendants are the caller's until he calls what is returned;
 * undefined where they are another's. Only among those who ask this way: flock(2) of the file by which the marks are
 * cleared, which nobody but the processes' owner can open.
 */
export function lockMarks(root: number): (() => void) | undefined {
  const locked: number[] = []
  const release = (): void => {
    for (const fd of locked.splice(0)) closeSync(fd)
  }
  for (const pid of [root, ...descendants(root)]) {
    try {
      locked.push(openSync(`/proc/${pid}/clear_refs`, constants.O_WRONLY))
    } catch {}
  }
  if (locked.every(tryLock)) return release
  release()
  return undefined
}

/** Whether it does something of its own at SIGTERM. */
export function catchesTerm(pid: number): boolean {
  return hasSignal(pid, 'SigCgt', SIGTERM_BIT)
}

/** Whether a mask of signals in /proc/PID/status has one. */
function hasSignal(pid: number, mask: string, bit: bigint): boolean {
  return (BigInt(`0x${statusOf(pid, mask) ?? '0'}`) & bit) !== 0n
}

function statusOf(pid: number, name: string): string | undefined {
  return new RegExp(`^${name}:\\s+(\\w+)$`, 'm').exec(procFile(pid, 'status'))?.[1]
}

/** Bytes of memory of the process and its descendants that belong to no file: about what a dump of them writes. */
export function memoryOfTree(root: number): number {
  return [root, ...descendants(root)].reduce((sum, pid) => sum + memoryOf(pid), 0)
}

function memoryOf(pid: number): number {
  const kib = [...procFile(pid, 'smaps_rollup').matchAll(/^(?:Anonymous|Pss_Shmem):\s+(\d+) kB$/gm)]
  return kib.reduce((sum, [, count]) => sum + Number(count) * 1024, 0)
}

/** The words of its command line. */
export function commandLine(pid: number): string[] {
  return procFile(pid, 'cmdline').split('\0')
}

/** The variables that it was started with; none where they may not be seen. */
export function environmentOf(pid: number): NodeJS.ProcessEnv {
  const entries = procFile(pid, 'environ').split('\0').filter(Boolean)
  return Object.fromEntries(entries.map((entry) => [entry.replace(/=.*/s, ''), entry.replace(/^[^=]*=?/, '')]))
}

function procFile(pid: number, name: string): string {
  try {
    return readFileSync(`/proc/${pid}/${name}`, 'utf8')
  } catch {
    return ''
  }
}
