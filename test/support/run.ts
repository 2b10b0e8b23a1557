/** Running our commands as a user does: by name, with pipes, pinned on status, stdout and stderr. */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import type { Test } from 'uvu'

export const root = dirname(dirname(import.meta.dirname))
export const fixtures = join(root, 'fixtures')
/** Where the Java fixture is when it was compiled: test/support/guest.ts. */
export const classes = join(root, 'classes')

export interface Ran {
  code: number | null
  signal: NodeJS.Signals | null
  stdout: Buffer
  stderr: string
}

export interface RunOptions {
  input?: Uint8Array
  env?: Record<string, string>
  cwd?: string
  /** Descriptors of ours that the program gets as 3, 4 and so on. */
  fds?: readonly number[]
  /** When it is killed: after two minutes if this is missing. */
  limitMs?: number
}

export interface Running {
  child: ChildProcess
  /** Resolves with the match when stderr says `pattern`; rejects when the command ends before. */
  says(pattern: RegExp): Promise<RegExpExecArray>
  /** What stderr said so far. */
  stderr(): string
  ended: Promise<Ran>
  /** Sends SIGTERM, or another signal, and waits for the end. */
  stop(signal?: NodeJS.Signals): Promise<Ran>
}

/** Where all takes longer: in the virtual machine. */
const SLOWER = Number(process.env.FERRY_SLOWER ?? 1)
/** Longer than anything here takes; a test that hangs fails. */
const LIMIT_MS = 120_000 * SLOWER
/** Shorter than the tests' own limits: what was said instead tells why. */
const LONG_SILENCE_MS = 25_000

function environment(extra: Record<string, string> = {}): NodeJS.ProcessEnv {
  return { ...process.env, ...extra, PATH: `${join(root, 'scripts', 'bin')}:${process.env.PATH}` }
}

/** Starts a program; it is killed after two minutes, or longer where all takes longer or it is asked for. */
export function start(program: string, args: readonly string[], options: RunOptions = {}): Running {
  const child: ChildProcess = spawn(program, args, {
    env: environment(options.env),
    cwd: options.cwd,
    stdio: ['pipe', 'pipe', 'pipe', ...(options.fds ?? [])],
  })
  const timer = setTimeout(() => child.kill('SIGKILL'), options.limitMs ?? LIMIT_MS)
  const stdout: Buffer[] = []
  let stderr = ''
  let over = false
  const listeners = new Set<() => void>()
  const tell = (): void => {
    for (const listener of listeners) listener()
  }
  child.stdout?.on('data', (chunk: Buffer) => stdout.push(chunk))
  child.stderr?.on('data', (chunk: Buffer) => {
    stderr += chunk.toString()
    tell()
  })
  child.stdin?.on('error', () => {})
  child.stdin?.end(options.input)
  const ended = (once(child, 'close') as Promise<[number | null, NodeJS.Signals | null]>).then(([code, signal]) => {
    clearTimeout(timer)
    over = true
    tell()
    return { code, signal, stdout: Buffer.concat(stdout), stderr }
  })
  return {
    child,
    stderr: () => stderr,
    ended,
    says: (pattern) =>
      new Promise((resolve, reject) => {
        const tell = setTimeout(
          () => console.error(`${program} has not said ${pattern}, but:\n${stderr.slice(-2000)}`),
          LONG_SILENCE_MS,
        ).unref()
        const look = (): void => {
          const match = pattern.exec(stderr)
          if (match !== null) resolve(match)
          else if (over) reject(new Error(`${program} ended without saying ${pattern}:\n${stderr}`))
          else return
          clearTimeout(tell)
          listeners.delete(look)
        }
        listeners.add(look)
        look()
      }),
    stop(signal = 'SIGTERM') {
      child.kill(signal)
      return ended
    },
  }
}

/** Runs one of our commands (`dump-to-stdout`, `cache` ...) or any program to its end. */
export function run(program: string, args: readonly string[], options: RunOptions = {}): Promise<Ran> {
  return start(program, args, options).ended
}

/** Runs a shell line in which our commands have their short names. */
export function shell(line: string, options: RunOptions = {}): Promise<Ran> {
  return run('bash', ['-o', 'pipefail', '-c', line], options)
}

/** A private directory that `remove` takes away. */
export function temporary(): { path: string; remove: () => void } {
  const path = mkdtempSync(join(tmpdir(), 'ferry-test-'))
  return { path, remove: () => rmSync(path, { recursive: true, force: true }) }
}

export interface InFolder {
  folder: string
  remove: () => void
}

/** Each test of the suite gets an empty directory of its own, which is gone afterwards. */
export function giveFolders(test: Test<InFolder>): void {
  test.before.each((context) => {
    const { path, remove } = temporary()
    context.folder = path
    context.remove = remove
  })
  test.after.each((context) => context.remove())
}

/** Polls until `found` gives something; for what no event announces (a file that another program writes). */
export async function eventually<Found>(
  found: () => Found | undefined,
  what: string,
  limitMs = 30_000 * SLOWER,
): Promise<Found> {
  for (const end = performance.now() + limitMs; performance.now() < end; ) {
    const value = found()
    if (value !== undefined) return value
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
  throw new Error(`${what} did not happen within ${limitMs / 1000} s`)
}

/** Asks a daemon for its status (SIGUSR1) again and again until it says `line`: memory comes back a moment later. */
export function statusIs({ child, stderr }: Running, line: RegExp): Promise<RegExpExecArray> {
  return eventually(() => {
    child.kill('SIGUSR1')
    return line.exec(stderr()) ?? undefined
  }, `${line}`)
}
