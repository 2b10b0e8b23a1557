/**
 * What all commands have in common: options, help, errors, signals and exit codes.
 *
 * A script gives its name, its usage text, its options and one function. Whatever that function throws becomes a line
 * and an exit code here.
 */
import { setMaxListeners } from 'node:events'
import { readFileSync, rmdirSync } from 'node:fs'
import { constants } from 'node:os'
import { dirname, join } from 'node:path'
import { parseArgs } from 'node:util'
import { setFlagsFromString } from 'node:v8'
import { Fault } from '../fault.ts'
import { takeMade } from '../made-directories.ts'
import type { Progress, Report } from '../progress.ts'
import { commonOptions, type Options, type ValuesOf } from './common-options.ts'
import { beginLife, type DaemonValues, detach, readDaemonOptions } from './daemon.ts'
import { exitCodes } from './exit-codes.ts'
import { Logger, starterFd } from './logger.ts'
import { describeProgress } from './progress-display.ts'

interface Command<Spec extends Options> {
  /** What the user calls it. */
  name: string
  usage: string
  options: Spec
  /** Set for a daemon, which reports progress without `--verbose` and takes `daemonOptions`. */
  daemon?: true
}

type Values<Spec extends Options> = ValuesOf<Spec & typeof commonOptions>

interface Invocation<Spec extends Options> {
  values: Values<Spec>
  /** What follows `--`: options for criu. */
  rest: string[]
  report: Report
  /** Aborted by SIGINT, SIGTERM and SIGHUP. */
  signal: AbortSignal
  /** Calls `listener` at every SIGUSR1: report your status. For daemons. */
  onStatus: (listener: () => void) => void
}

type Body<Spec extends Options> = (run: Invocation<Spec>) => Promise<void>

/** How long a command may take to end after a signal. Then the process ends. */
const STOP_MS = 15_000

/**
 * Runs a command and ends the process.
 *
 * V8's optimizing compiler is off: the system and native code move and sum our bytes, and compiling the rest takes a
 * second thread just while CRIU needs it (proxy, 1 GiB on two cores: 0.84 instead of 1.07 s of processor time, frozen
 * for 0.97 instead of 1.15 s, medians of 5).
 */
export function main<Spec extends Options>(command: Command<Spec>, body: Body<Spec>): void {
  setFlagsFromString('--no-opt')
  let logger = new Logger()
  // Without a listener of ours Node would open its debugger.
  if (command.daemon) process.on('SIGUSR1', () => {})
  const stop = new AbortController()
  // Each connection of a daemon listens while it lasts.
  setMaxListeners(0, stop.signal)
  let caught: number | undefined
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.on(name, () => {
      if (caught !== undefined) return
      const code = 128 + constants.signals[name]
      caught = code
      stop.abort(new Fault('ABORTED', `stopped by ${name}`))
      setTimeout(() => process.exit(code), STOP_MS).unref()
    })
  }
  const begin = async (): Promise<number> => {
    logger = new Logger(starterFd())
    return invoke(command, logger, stop.signal, body)
  }
  begin().then(
    (code) => process.exit(code === 0 ? code : (caught ?? code)),
    (error: unknown) => {
      complain(command, logger, error)
      process.exit(caught ?? (error instanceof Fault ? exitCodes[error.code] : 1))
    },
  )
}

/** Returns the exit code. */
async function invoke<Spec extends Options>(
  command: Command<Spec>,
  logger: Logger,
  signal: AbortSignal,
  body: Body<Spec>,
): Promise<number> {
  const argv = process.argv.slice(2)
  const cut = argv.indexOf('--')
  const values = parse(command, cut < 0 ? argv : argv.slice(0, cut))
  const { help, version } = values as ValuesOf<typeof commonOptions>
  if (help === true) return print(command.usage)
  if (version === true) return print(packageVersion())
  const plan = command.daemon && readDaemonOptions(values as DaemonValues)
  if (plan?.detach === true && !logger.detached) return detach(plan, command.name, logger, signal)
  const ready = plan && beginLife(plan, command.name, logger, signal)
  const tell = reporter(command, values, logger, ready)
  let started = false
  const report = (progress: Progress): void => {
    started ||= progress.event === (command.daemon ? 'ready' : 'listening')
    tell(progress)
  }
  const onStatus = (listener: () => void): void => void process.on('SIGUSR1', listener)
  try {
    await body({ values, rest: cut < 0 ? [] : argv.slice(cut + 1), report, signal, onStatus })
  } catch (error) {
    // A command that cannot start leaves no directory behind that it has made.
    if (!started) for (const directory of takeMade()) removeIfEmpty(directory)
    throw error
  }
  return 0
}

/** Reports that are wanted of every command, also with `--quiet`. */
const always: readonly Progress['event'][] = ['failed', 'status', 'undecided', 'small pipes']

function reporter(
  { name, daemon }: Command<Options>,
  { quiet, verbose }: ValuesOf<typeof commonOptions>,
  logger: Logger,
  ready: (() => void) | undefined,
): Report {
  const talks = quiet !== true && (daemon === true || verbose === true)
  return (progress) => {
    if (progress.event === 'ready') {
      ready?.()
      return
    }
    if (talks || always.includes(progress.event)) logger.say(`${name}: ${describeProgress(progress)}\n`)
    if (progress.event === 'failed') logger.say(hint(name, progress.fault) + causes(name, progress.fault, verbose))
  }
}

function removeIfEmpty(directory: string): void {
  try {
    rmdirSync(directory)
  } catch {}
}

function print(text: string): number {
  process.stdout.write(`${text}\n`)
  return 0
}

function parse<Spec extends Options>(command: Command<Spec>, args: string[]): Values<Spec> {
  try {
    // CRIU's -v4 is -v here.
    const known = args.map((arg) => (/^-v\d$/.test(arg) ? '-v' : arg))
    return parseArgs({ args: known, options: { ...command.options, ...commonOptions }, strict: true })
      .values as Values<Spec>
  } catch (cause) {
    const message = (cause as Error).message.split(/\.\s|\.$/)[0] as string
    throw new Fault('USAGE', message[0]?.toLowerCase() + message.slice(1), { hint: `${command.name} --help`, cause })
  }
}

function complain({ name, daemon }: Command<Options>, logger: Logger, error: unknown): void {
  if (!(error instanceof Fault)) {
    logger.sayLast(`${name}: this is a bug: ${error instanceof Error ? error.stack : String(error)}\n`)
  } else if (error.code === 'ABORTED' && daemon) {
    logger.sayLast(`${name}: ${error.message}\n`)
  } else {
    logger.sayLast(`${name}: error: ${error.message}\n${hint(name, error)}`)
  }
}

function hint(name: string, fault: Error): string {
  return fault instanceof Fault && fault.hint !== undefined ? `${name}: hint: ${fault.hint}\n` : ''
}

/** A line for each error that led to this one, if they are wanted. */
function causes(name: string, fault: Error, wanted = false): string {
  const cause = wanted ? fault.cause : undefined
  return cause instanceof Error ? `${name}: cause: ${cause.message}\n${causes(name, cause, wanted)}` : ''
}

function packageVersion(): string {
  for (let folder = import.meta.dirname; folder !== dirname(folder); folder = dirname(folder)) {
    try {
      const found = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8')) as { name: string; version: string }
      if (found.name === 'criu-ferry') return found.version
    } catch {}
  }
  throw new Error('no package.json above the program')
}
