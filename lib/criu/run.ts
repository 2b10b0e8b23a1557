/** Finds the criu command, checks its options, runs it, and keeps its error message and its statistics. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { accessSync, constants, existsSync, readFileSync, statSync } from 'node:fs'
import { delimiter, dirname, join, resolve } from 'node:path'
import type { Readable } from 'node:stream'
import { setTimeout as delay } from 'node:timers/promises'
import pump from 'pump'
import split from 'split2'
import { commandName } from '../command-name.ts'
import { Fault } from '../fault.ts'
import { decodeDumpStats } from '../format/stats.ts'
import { ownChild } from '../kernel/child-reaper.ts'
import type { Fd } from '../kernel/fd.ts'
import { trustedPath } from '../kernel/trusted-path.ts'
import { configuredOptions, ownStart } from './config-files.ts'

/** A wrapper for the newest CRIU that works here, made by the project's set-up. */
const FETCHED = join('.criu', 'current', 'criu')

/**
 * The path of the criu to run: `option`, else FERRY_CRIU, else the one that the set-up fetched, else the system's.
 * Throws `CRIU` where there is none, and for a file that other users can change.
 */
export function findCriu(option?: string): string {
  const criu = resolve(chosenCriu(option))
  try {
    trustedPath(criu, { otherwise: 'name another one with --criu PATH', program: import.meta.filename })
  } catch (cause) {
    if (!(cause instanceof Fault)) throw cause
    const { message, hint = '' } = cause
    throw new Fault('CRIU', `${criu} is not started: ${message}`, { hint, cause })
  }
  return criu
}

function chosenCriu(option: string | undefined): string {
  const asked = option ?? process.env.FERRY_CRIU
  const hint = 'install criu 4.1 or newer, or name one with --criu PATH; in a checkout: npm run setup'
  if (asked === 'none') throw new Fault('CRIU', 'FERRY_CRIU=none: criu is switched off', { hint: 'unset FERRY_CRIU' })
  if (asked !== undefined) {
    if (isProgram(asked)) return asked
    throw new Fault('CRIU', `no criu at ${asked}`, { hint })
  }
  for (let folder = import.meta.dirname; folder !== dirname(folder); folder = dirname(folder)) {
    if (isProgram(join(folder, FETCHED))) return join(folder, FETCHED)
    // The folders above may belong to other users.
    if (existsSync(join(folder, 'package.json'))) break
  }
  for (const folder of [...(process.env.PATH ?? '').split(delimiter), '/usr/sbin', '/usr/local/sbin']) {
    if (folder !== '' && isProgram(join(folder, 'criu'))) return join(folder, 'criu')
  }
  throw new Fault('CRIU', 'criu is not installed', { hint })
}

function isProgram(path: string): boolean {
  try {
    accessSync(path, constants.X_OK)
    return statSync(path).isFile()
  } catch {
    return false
  }
}

/** The options of CRIU that cannot be used with our `--stream`, and what to do instead. */
const refused: Record<string, string> = {
  '-D': 'the directory is ours: use -D DIR before the --',
  '--images-dir': 'the directory is ours: use -D DIR before the --',
  '-t': 'name the process before the --',
  '--tree': 'name the process before the --',
  '--stream': 'it is ours',
  '--page-server': 'pages travel in the stream already',
  '--prev-images-dir': `criu --stream has no incremental dumps; use ${commandName('pre-copy')}`,
  '--auto-dedup': 'criu aborts when this meets --stream',
  '--lazy-pages': 'criu --stream cannot serve pages later',
}

/**
 * Throws `USAGE` for an option that would break the stream. `more`: further options that this command refuses, with
 * their hints.
 */
export function checkCriuOptions(options: readonly string[], more: Record<string, string> = {}): void {
  const hints = Object.entries({ ...refused, ...more })
  for (const option of options) {
    const name = option.startsWith('--') ? (option.split('=')[0] as string) : option.slice(0, 2)
    // getopt accepts a prefix of a long option.
    const [, hint] = hints.find(([long]) => long === name || (name.length > 3 && long.startsWith(name))) ?? []
    if (hint !== undefined) throw new Fault('USAGE', `criu option ${name} cannot be used here`, { hint })
  }
}

/** The options after which the tasks run on, or stay stopped, at the source. */
const leaving = ['--leave-running', '--leave-stopped']
/** Options of one letter with a value: the rest of the word, or, except for `v` and `x`, the next word. */
const VALUED = /[tDorJWLMvx]/

/** The first option, in any spelling that getopt accepts, after which criu dump does not kill the tasks. */
export function leavingOption(options: readonly string[]): string | undefined {
  let isValue = false
  return options.find((option) => {
    const skipped = isValue
    isValue = false
    if (skipped) return false
    // getopt accepts a prefix of a long option if it is no other's.
    if (option.startsWith('--'))
      return option.length > '--leave-'.length && leaving.some((long) => long.startsWith(option))
    const [flags = ''] = option.split(VALUED)
    isValue = /^-[^tDorJWLMvx]*[tDorJWLM]$/.test(option)
    return option.startsWith('-') && /[Rs]/.test(flags)
  })
}

/** Throws `USAGE` where criu would leave a second process besides the one that the command `what` hands over. */
export function refuseLeaving(options: readonly string[], what: string, hint: string): void {
  const typed = leavingOption(options)
  const configured = leavingOption(configuredOptions(options, ownStart()))
  if (typed === undefined && configured === undefined) return
  const option = typed ?? `${configured}, which a configuration file of criu's has,`
  throw new Fault('USAGE', `criu option ${option} and ${what} do not go together: a hand-over leaves one process`, {
    hint: typed === undefined ? 'add -- --no-default-config, or take it out of the file' : hint,
  })
}

export interface CriuRun {
  /** The number of its process; 0 if it could not be started. */
  readonly pid: number
  /** Resolves when criu exits 0; throws `CRIU` with its own first error. */
  readonly done: Promise<void>
  /** Sends SIGKILL, as the last resort: a criu that loses its socket and pipes ends by itself. */
  kill(): void
}

/** How many of criu's error lines are kept: the first is the cause, the others follow from it. */
const MOST_LINES = 64
const errorLine = /\bError \(([^)]*)\): (.*)$/
/** An error that criu prints without CAP_SYS_RESOURCE, also in dumps that succeed. */
const harmless = /RLIMIT_NOFILE/

/**
 * Starts criu. Its messages go to our stderr if `options` ask for them (-v), otherwise only its first error is kept.
 * `inherited`: its descriptors from 3 on, which stay open here.
 */
export function startCriu(
  criu: string,
  action: 'pre-dump' | 'dump' | 'restore',
  options: readonly string[],
  inherited: readonly Fd[] = [],
): CriuRun {
  // A ctrl-C is for us: a criu that is ended half way may lose the tasks that it works on.
  const start = `trap '' HUP INT QUIT; exec "$0" "$@"`
  const child = spawn('sh', ['-c', start, criu, action, ...options], {
    stdio: ['ignore', 'ignore', 'pipe', ...inherited],
  })
  const verbose = options.some((option) => /^-v+\d?$|^--verbosity/.test(option))
  const errors: string[] = []
  const lines = split((line: string) => {
    if (verbose) process.stderr.write(`${line}\n`)
    const error = errorLine.exec(line)
    if (error !== null && !harmless.test(line) && errors.length < MOST_LINES) errors.push(`${error[2]} (${error[1]})`)
  })
  const drained = new Promise<void>((resolve) => pump(child.stderr as Readable, lines.resume(), () => resolve()))
  const exited = once(child, 'exit') as Promise<[code: number | null, signal: string | null]>
  if (child.pid !== undefined) child.once('exit', ownChild(child.pid).ended)
  const done = (async () => {
    const [code, signal] = await exited.catch((cause: unknown) => {
      throw new Fault('CRIU', `cannot start ${criu}`, { cause })
    })
    if (code === 0) return
    // Who was killed says no more, and its tasks may have its stderr.
    if (signal === null) await Promise.race([drained, delay(1000, undefined, { ref: false })])
    const how = signal === null ? `exit code ${code}` : signal
    throw new Fault('CRIU', `criu ${action} failed (${how})${errors[0] === undefined ? '' : `: ${errors[0]}`}`, {
      hint: process.geteuid?.() === 0 ? `for the whole story add: -- -v4 -o /tmp/${action}.log` : 'criu needs root',
    })
  })()
  done.catch(() => {})
  return { pid: child.pid ?? 0, done, kill: () => void child.kill('SIGKILL') }
}

/**
 * What explains `error`, a failure of the work with this criu: criu's own error where the stream broke off, else
 * `error` itself. Waits for the end of the criu, which has lost its socket; kills it after `patienceMs`.
 */
export async function explainFailure(error: unknown, { done, kill }: CriuRun, patienceMs: number): Promise<unknown> {
  const patience = delay(patienceMs, 'impatient' as const, { ref: false })
  const cause = await Promise.race([done.catch((reason: unknown) => reason), patience])
  if (cause === 'impatient') kill()
  return error instanceof Fault && error.code === 'FAILED_DUMP' && cause instanceof Fault ? cause : error
}

/**
 * How long the tasks were frozen, by the statistics that CRIU left in `directory`. Undefined where CRIU has not written
 * them: it does so last.
 */
export function frozenMs(directory: string): number | undefined {
  try {
    return decodeDumpStats(readFileSync(join(directory, 'stats-dump'))).frozenTime / 1000
  } catch {
    return undefined
  }
}
