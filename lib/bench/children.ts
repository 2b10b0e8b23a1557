/** The programs of one run: none of them outlives it. */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { Fault } from '../fault.ts'

/** How long a program may take to end by itself. */
const GRACE_MS = 5000

export class Children {
  readonly #running = new Set<ChildProcess>()
  readonly #signal: AbortSignal

  /** `signal` ends them at once. */
  constructor(signal: AbortSignal) {
    this.#signal = signal
    signal.addEventListener('abort', this.#killAll)
  }

  /** Starts a program; its stderr is a pipe. */
  start(program: string, args: readonly string[], options: { cwd?: string; env?: NodeJS.ProcessEnv } = {}) {
    const child = spawn(program, args, { ...options, stdio: ['ignore', 'ignore', 'pipe'] })
    this.#running.add(child)
    const gone = (): void => void this.#running.delete(child)
    child.once('close', gone).once('error', gone)
    if (this.#signal.aborted) child.kill('SIGKILL')
    return child
  }

  /** Runs a program to its end. Throws like `succeeded`. */
  run(program: string, args: readonly string[], options: { cwd?: string } = {}): Promise<void> {
    const done = succeeded(this.start(program, args, options), [program, ...args].join(' '))
    // Where another one fails before, nobody waits for this one.
    done.catch(() => {})
    return done
  }

  /** Ends those that still run. */
  async end(): Promise<void> {
    for (const child of this.#running) child.kill('SIGTERM')
    const timer = setTimeout(this.#killAll, GRACE_MS)
    await Promise.all([...this.#running].map((child) => once(child, 'close')))
    clearTimeout(timer)
    this.#signal.removeEventListener('abort', this.#killAll)
  }

  readonly #killAll = (): void => {
    for (const child of this.#running) child.kill('SIGKILL')
  }
}

/** Rejects with what it said, unless it ends well. */
export async function succeeded(child: ChildProcess, what: string): Promise<void> {
  let said = ''
  child.stderr?.on('data', (text: Buffer) => {
    said += String(text)
  })
  const [code] = (await once(child, 'close')) as [number | null]
  if (code === 0) return
  throw new Fault('CRIU', `${what} exited with ${code}: ${said.trim().split('\n').slice(-3).join(' / ')}`)
}

/** Waits for the words in what a daemon says on stderr. Returns what the pattern caught. */
export function says(child: ChildProcess, pattern: RegExp): Promise<string> {
  let said = ''
  const heard = new Promise<string>((resolve, reject) => {
    child.stderr?.on('data', (text: Buffer) => {
      said += String(text)
      const match = pattern.exec(said)
      if (match !== null) resolve(match[1] ?? '')
    })
    child.once('close', () => reject(new Fault('IO', `a daemon ended: ${said}`)))
  })
  heard.catch(() => {})
  return heard
}
