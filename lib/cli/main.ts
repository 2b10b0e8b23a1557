/**
 * The one voice of every command: options, help, errors, signals, exit codes.
 *
 * A script gives its name, its usage text, its options and one function; whatever that function throws becomes a line and
 * an exit code here, and nothing else prints.
 */
import { setMaxListeners } from 'node:events'
import { readFileSync } from 'node:fs'
import { constants } from 'node:os'
import { dirname, join } from 'node:path'
import { parseArgs } from 'node:util'
import { setFlagsFromString } from 'node:v8'
import { Fault } from '../fault.ts'
import type { Progress, Report } from '../progress.ts'
import { commonOptions, type Options, type ValuesOf } from './common-options.ts'
import { beginLife, detach } from './daemon.ts'
import { type DaemonValues, readDaemonOptions } from './daemon-options.ts'
import { exitCodes } from './exit-codes.ts'
import { type Logger, openLogger, starterFd } from './logger.ts'
import { describeProgress } from './progress-display.ts'

export interface Command<Spec extends Options> {
  name: string
  usage: string
  options: Spec
  /** A daemon reports what it does without being asked, and takes `daemonOptions`. `notify` tells systemd its state. */
  daemon?: { notify: (state: string) => void }
}

type Values<Spec extends Options> = ValuesOf<Spec & typeof commonOptions>

export interface Invocation<Spec extends Options> {
  values: Values<Spec>
  /** What follows `--`: options for criu. */
  rest: string[]
  report: Report
  /** Aborted by SIGINT, SIGTERM and SIGHUP. */
  signal: AbortSignal
  /** Calls back at every SIGUSR1: report your status. For daemons. */
  onStatus: (listener: () => void) => void
}

/**
 * Runs a command and ends the process. Without V8's optimizing compiler: our bytes are moved and summed by the system and by
 * native code, and compiling the rest takes a second thread just while CRIU needs it (proxy, 1 GiB on two cores: 0.84
 * instead of 1.07 s of processor time, frozen for 0.97 instead of 1.15 s, medians of 5).
 */
export function main<Spec extends Options>(
  command: Command<Spec>,
  body: (run: Invocation<Spec>) => Promise<void>,
): void {
  setFlagsFromString('--no-opt')
  let voice = openLogger()
  // Without a listener of ours Node would open its debugger.
  if (command.daemon !== undefined) process.on('SIGUSR1', () => {})
  const stop = new AbortController()
  // Each conversation of a daemon listens while it lasts.
  setMaxListeners(0, stop.signal)
  let caught: NodeJS.Signals | undefined
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.on(name, () => {
      if (caught !== undefined) return
      caught = name
      stop.abort(new Fault('ABORTED', `stopped by ${name}`))
      setTimeout(() => process.exit(128 + constants.signals[name]), STOP_MS).unref()
    })
  }
  const begin = async (): Promise<number> => {
    voice = openLogger(starterFd())
    return invoke(command, voice, stop.signal, body)
  }
  begin().then(
    (code) => process.exit(code === 0 || caught === undefined ? code : 128 + constants.signals[caught]),
    (error: unknown) => {
      complain(command, voice, error)
      process.exit(caught === undefined ? exitCode(error) : 128 + constants.signals[caught])
    },
  )
}

/** What is still running this long after a signal is given up. */
const STOP_MS = 15_000

async function invoke<Spec extends Options>(
  command: Command<Spec>,
  voice: Logger,
  signal: AbortSignal,
  body: (run: Invocation<Spec>) => Promise<void>,
): Promise<number> {
  const { name, daemon } = command
  const argv = process.argv.slice(2)
  const cut = argv.indexOf('--')
  const values = parse(command, cut < 0 ? argv : argv.slice(0, cut))
  const common = values as { help?: boolean; version?: boolean; verbose?: boolean; quiet?: boolean }
  if (common.help === true) return print(command.usage)
  if (common.version === true) return print(packageVersion())
  const plan = daemon && readDaemonOptions(values as DaemonValues)
  if (plan?.detach === true && !voice.detached) return detach(plan, name, voice, signal)
  const tell = (state: string): void => {
    try {
      daemon?.notify(state)
    } catch (error) {
      voice.say(`${name}: cannot tell systemd ${state}: ${(error as Error).message}\n`)
    }
  }
  const life = plan && beginLife(plan, voice, tell, signal)
  const talks = common.quiet !== true && (daemon !== undefined || common.verbose === true)
  const report = (progress: Progress): void => {
    if (progress.event === 'ready') {
      life?.ready()
      return
    }
    const asked = ['failed', 'status', 'undecided', 'small pipes'].includes(progress.event)
    if (talks || asked) voice.say(`${name}: ${describeProgress(progress)}\n`)
    if (progress.event === 'failed')
      voice.say(hint(name, progress.fault) + causes(name, progress.fault, common.verbose))
  }
  const onStatus = (listener: () => void): void => void process.on('SIGUSR1', listener)
  await body({ values, rest: cut < 0 ? [] : argv.slice(cut + 1), report, signal, onStatus })
  return 0
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

function exitCode(error: unknown): number {
  return error instanceof Fault ? exitCodes[error.code] : 1
}

function complain({ name, daemon }: { name: string; daemon?: unknown }, voice: Logger, error: unknown): void {
  if (error instanceof Fault && error.code === 'ABORTED' && daemon !== undefined) {
    voice.sayLast(`${name}: ${error.message}\n`)
  } else if (error instanceof Fault) {
    voice.sayLast(`${name}: error: ${error.message}\n${hint(name, error)}`)
  } else {
    voice.sayLast(`${name}: this is a bug: ${error instanceof Error ? error.stack : String(error)}\n`)
  }
}

function hint(name: string, fault: Error): string {
  return fault instanceof Fault && fault.hint !== undefined ? `${name}: hint: ${fault.hint}\n` : ''
}

/** A line for each error that led to this one, where they are wanted. */
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
