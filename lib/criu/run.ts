/**
 * Running the criu command: which one, with which options, and what it said when it failed.
 */

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { accessSync, constants, existsSync, statSync } from 'node:fs'
import { delimiter, dirname, join, resolve } from 'node:path'
import type { Readable } from 'node:stream'
import pump from 'pump'
import split from 'split2'
import { commandName } from '../command-name.ts'
import { Fault } from '../fault.ts'
import type { Fd } from '../kernel/fd.ts'
import { ownChild } from '../kernel/orphans.ts'
import { trustedPath } from '../kernel/trusted-path.ts'
import { configuredOptions, ownStart } from './config-files.ts'

/** Made by the project's set-up: a wrapper for the newest CRIU that works here. */
const FETCHED = join('.criu', 'current', 'criu')

/**
 * The path of the criu to run: `option`, else FERRY_CRIU, else the one that the set-up fetched, else the system's.
 * Throws `CRIU`, also for one that others can change.
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
    // Above it others may have theirs.
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

/** Options of CRIU that cannot go together with `--stream` as we run it, and what to do instead. */
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

/** Throws `USAGE` for an option that would break the stream; `more`: or what else this command does, and what to do instead. */
export function checkCriuOptions(options: readonly string[], more: Record<string, string> = {}): void {
  for (const option of options) {
    const name = option.startsWith('--') ? (option.split('=')[0] as string) : option.slice(0, 2)
    // getopt takes any beginning of a long option for it.
    const [, hint] =
      Object.entries({ ...refused, ...more }).find(
        ([long]) => long === name || (name.length > 3 && long.startsWith(name)),
      ) ?? []
    if (hint !== undefined) throw new Fault('USAGE', `criu option ${name} cannot be used here`, { hint })
  }
}

/** Options of CRIU after which the tasks go on at the source, or stay there. */
const leaving = ['--leave-running', '--leave-stopped']
/** Its options of one letter with a value: the rest of the word, or, but for `v` and `x`, the next one. */
const VALUED = /[tDorJWLMvx]/

/** The first option, in any spelling that getopt takes, after which criu dump does not kill the tasks. */
export function leavingOption(options: readonly string[]): string | undefined {
  let isValue = false
  return options.find((option) => {
    const skipped = isValue
    isValue = false
    if (skipped) return false
    // A beginning of a long option stands for it if it is no other's.
    if (option.startsWith('--'))
      return option.length > '--leave-'.length && leaving.some((long) => long.startsWith(option))
    const [flags = ''] = option.split(VALUED)
    isValue = /^-[^tDorJWLMvx]*[tDorJWLM]$/.test(option)
    return option.startsWith('-') && /[Rs]/.test(flags)
  })
}

/** Throws `USAGE` where criu would leave a second process beside the one that `what` hands over. */
export function refuseLeaving(options: readonly string[], what: string, hint: string): void {
  const said = leavingOption(options)
  const configured = leavingOption(configuredOptions(options, ownStart()))
  if (said === undefined && configured === undefined) return
  const option = said ?? `${configured}, which a configuration file of criu's has,`
  throw new Fault('USAGE', `criu option ${option} and ${what} do not go together: a hand-over leaves one process`, {
    hint: said === undefined ? 'add -- --no-default-config, or take it out of the file' : hint,
  })
}

export interface CriuRun {
  /** Its process; 0 if it could not be started. */
  readonly pid: number
  /** Resolves when criu exits 0; throws `CRIU` with its own first error. */
  readonly done: Promise<void>
  /** SIGKILL: the last resort; a criu that loses its socket and pipes ends by itself. */
  kill(): void
}

/** Lines of criu's that are kept; the first error is the cause, the rest follows from it. */
const MOST_LINES = 64
const errorLine = /\bError \(([^)]*)\): (.*)$/
/** Printed wherever CAP_SYS_RESOURCE is missing, by dumps that succeed as well. */
const harmless = /RLIMIT_NOFILE/

/**
 * Starts criu. Its messages go to our stderr if `options` ask for them (-v), else only its first error is kept. `inherited`: what is its
 * descriptor 3; it stays open here.
 */
export function startCriu(
  criu: string,
  action: 'pre-dump' | 'dump' | 'restore',
  options: readonly string[],
  inherited: readonly Fd[] = [],
): CriuRun {
  // A ctrl-C is for us: who ends a criu half way may lose what it works on.
  const start = `trap '' HUP INT QUIT; exec "$0" "$@"`
  const child = spawn('sh', ['-c', start, criu, action, ...options], {
    stdio: ['ignore', 'ignore', 'pipe', ...inherited],
  })
  const verbose = options.some((option) => /^-v+\d?$|^--verbosity/.test(option))
  const errors: string[] = []
  const stderr = child.stderr as Readable
  const lines = split((line: string) => {
    if (verbose) process.stderr.write(`${line}\n`)
    const error = errorLine.exec(line)
    if (error !== null && !harmless.test(line) && errors.length < MOST_LINES) errors.push(`${error[2]} (${error[1]})`)
  })
  const drained = new Promise<void>((resolve) => pump(stderr, lines.resume(), () => resolve()))
  const exited = once(child, 'exit') as Promise<[code: number | null, signal: string | null]>
  if (child.pid !== undefined) child.once('exit', ownChild(child.pid).ended)
  const done = (async () => {
    const [code, signal] = await exited.catch((cause: unknown) => {
      throw new Fault('CRIU', `cannot start ${criu}`, { cause })
    })
    if (code === 0) return
    await Promise.race([drained, new Promise((resolve) => setTimeout(resolve, 1000).unref())])
    const how = signal === null ? `exit code ${code}` : signal
    throw new Fault('CRIU', `criu ${action} failed (${how})${errors[0] === undefined ? '' : `: ${errors[0]}`}`, {
      hint: process.geteuid?.() === 0 ? `for the whole story add: -- -v4 -o /tmp/${action}.log` : 'criu needs root',
    })
  })()
  done.catch(() => {})
  return { pid: child.pid ?? 0, done, kill: () => void child.kill('SIGKILL') }
}
