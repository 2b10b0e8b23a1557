/** The programs of one run: none of them outlives it. */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'

export interface Children {
  /** Starts a program; its stderr is a pipe. */
  start(program: string, args: readonly string[], options?: { cwd?: string; env?: NodeJS.ProcessEnv }): ChildProcess
  /** Ends those that still run. */
  end(): Promise<void>
}

/** How long a program may take to end by itself. */
const GRACE_MS = 5000

/** `signal` ends them at once. */
export function openChildren(signal: AbortSignal): Children {
  const running = new Set<ChildProcess>()
  const kill = (how: NodeJS.Signals): void => {
    for (const child of running) child.kill(how)
  }
  const killAll = (): void => kill('SIGKILL')
  signal.addEventListener('abort', killAll)
  return {
    start(program, args, options = {}) {
      const child = spawn(program, args, { ...options, stdio: ['ignore', 'ignore', 'pipe'] })
      running.add(child)
      const gone = (): void => void running.delete(child)
      child.once('close', gone).once('error', gone)
      if (signal.aborted) child.kill('SIGKILL')
      return child
    },
    async end() {
      kill('SIGTERM')
      const timer = setTimeout(killAll, GRACE_MS)
      await Promise.all([...running].map((child) => once(child, 'close')))
      clearTimeout(timer)
      signal.removeEventListener('abort', killAll)
    },
  }
}
