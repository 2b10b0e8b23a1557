/**
 * A second host, as far as processes go: a pid and mount namespace of its own. On one host the copy would want the pid
 * of a source that is still being torn down.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { eventually } from './run.ts'

export interface Host {
  /** The start of a command line that runs in it. */
  enter: string[]
  /** Our number for its process `pid`. */
  outerPid(pid: number): number
  /** Ends everything in it. */
  stop(): Promise<void>
}

/** Needs root and unshare, which is part of every Debian. */
export async function startHost(): Promise<Host> {
  // The first process of a host takes away the dead that others leave, or their numbers stay taken.
  const init0 = ['perl', '-e', '$SIG{CHLD} = "IGNORE"; sleep 3600 while 1']
  // It ends with us, also where we are killed.
  const ending = ['--pdeathsig', 'KILL', 'unshare', '--kill-child']
  const unshare: ChildProcess = spawn('setpriv', [...ending, '--pid', '--mount', '--fork', '--mount-proc', ...init0], {
    stdio: 'ignore',
  })
  const exited = once(unshare, 'exit')
  const children = `/proc/${unshare.pid}/task/${unshare.pid}/children`
  const init = await eventually(() => Number(readFileSync(children, 'utf8').trim()) || undefined, 'a namespace')
  await eventually(() => readFileSync(`/proc/${init}/comm`, 'utf8') === 'perl\n' || undefined, 'its first process')
  // Other hosts have the same numbers.
  const namespace = readlinkSync(`/proc/${init}/ns/pid`)
  return {
    // nsenter forks: without setpriv its child would outlive it and keep our pipes open.
    enter: ['nsenter', '-t', String(init), '-p', '-m', 'setpriv', '--pdeathsig', 'TERM'],
    outerPid(pid) {
      for (const entry of readdirSync('/proc')) {
        const ours = Number(entry)
        if (Number.isInteger(ours) && innerPid(ours, namespace) === pid) return ours
      }
      throw new Error(`no process ${pid} in the namespace`)
    },
    async stop() {
      process.kill(init, 'SIGKILL')
      await exited
    },
  }
}

/** The process's number in that namespace, if it is in it. */
function innerPid(pid: number, namespace: string): number | undefined {
  try {
    if (readlinkSync(`/proc/${pid}/ns/pid`) !== namespace) return undefined
    const [, outer, inner] = /^NSpid:\s+(\d+)\s+(\d+)$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8')) ?? []
    return Number(outer) === pid ? Number(inner) : undefined
  } catch {
    return undefined
  }
}
