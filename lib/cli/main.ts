/**
 * The one voice of every command: options, help, errors, signals, exit codes.
 *
 * A script gives its name, its usage text, its options and one function; whatever that function throws becomes a line and
 * an exit code here, and nothing else prints.
 */
import { readFileSync } from 'node:fs'
import { constants } from 'node:os'
import { dirname, join } from 'node:path'
import { type ParseArgsConfig, parseArgs } from 'node:util'
import { Fault } from '../fault.ts'
import type { Progress, Report } from '../progress.ts'
import { exitCodes } from './exit.ts'
import { describe } from './report.ts'

type Options = NonNullable<ParseArgsConfig['options']>

const commonOptions = {
  help: { type: 'boolean', short: 'h' },
  version: { type: 'boolean', short: 'V' },
  verbose: { type: 'boolean', short: 'v' },
  quiet: { type: 'boolean', short: 'q' },
} as const satisfies Options

export interface Command<Spec extends Options> {
  name: string
  usage: string
  options: Spec
  /** A daemon reports what it does without being asked. */
  daemon?: boolean
}

type Values<Spec extends Options> = ReturnType<typeof parseArgs<{ options: Spec & typeof commonOptions }>>['values']

export interface Invocation<Spec extends Options> {
  values: Values<Spec>
  /** What follows `--`: options for criu. */
  rest: string[]
  report: Report
  /** Aborted by SIGINT, SIGTERM and SIGHUP. */
  signal: AbortSignal
}

/** Runs a command and ends the process. */
export function main<Spec extends Options>(
  command: Command<Spec>,
  body: (run: Invocation<Spec>) => Promise<void>,
): void {
  // Who closes our stderr does not want to know; the work goes on.
  process.stderr.on('error', () => {})
  const stop = new AbortController()
  let caught: NodeJS.Signals | undefined
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.on(name, () => {
      if (caught !== undefined) return
      caught = name
      stop.abort(new Fault('ABORTED', `stopped by ${name}`))
      setTimeout(() => process.exit(128 + constants.signals[name]), STOP_MS).unref()
    })
  }
  invoke(command, stop.signal, body).then(
    () => process.exit(0),
    (error: unknown) => {
      complain(command, error)
      process.exit(caught === undefined ? exitCode(error) : 128 + constants.signals[caught])
    },
  )
}

/** What is still running this long after a signal is given up. */
const STOP_MS = 15_000

async function invoke<Spec extends Options>(
  command: Command<Spec>,
  signal: AbortSignal,
  body: (run: Invocation<Spec>) => Promise<void>,
): Promise<void> {
  const argv = process.argv.slice(2)
  const cut = argv.indexOf('--')
  const values = parse(command, cut < 0 ? argv : argv.slice(0, cut))
  const common = values as { help?: boolean; version?: boolean; verbose?: boolean; quiet?: boolean }
  if (common.help === true) return void process.stdout.write(`${command.usage}\n`)
  if (common.version === true) return void process.stdout.write(`${packageVersion()}\n`)
  const talks = common.quiet !== true && (command.daemon === true || common.verbose === true)
  const report = (progress: Progress): void => {
    if (talks || progress.event === 'failed') process.stderr.write(`${command.name}: ${describe(progress)}\n`)
    if (progress.event === 'failed') hint(command.name, progress.fault)
  }
  await body({ values, rest: cut < 0 ? [] : argv.slice(cut + 1), report, signal })
}

function parse<Spec extends Options>(command: Command<Spec>, args: string[]): Values<Spec> {
  try {
    return parseArgs({ args, options: { ...command.options, ...commonOptions }, strict: true }).values as Values<Spec>
  } catch (cause) {
    const message = (cause as Error).message.split('. ')[0] as string
    throw new Fault('USAGE', message[0]?.toLowerCase() + message.slice(1), { hint: `${command.name} --help`, cause })
  }
}

function exitCode(error: unknown): number {
  return error instanceof Fault ? exitCodes[error.code] : 1
}

function complain({ name, daemon }: { name: string; daemon?: boolean }, error: unknown): void {
  if (error instanceof Fault && error.code === 'ABORTED' && daemon === true) {
    process.stderr.write(`${name}: ${error.message}\n`)
  } else if (error instanceof Fault) {
    process.stderr.write(`${name}: error: ${error.message}\n`)
    hint(name, error)
  } else {
    process.stderr.write(`${name}: this is a bug: ${error instanceof Error ? error.stack : String(error)}\n`)
  }
}

function hint(name: string, fault: Error): void {
  if (fault instanceof Fault && fault.hint !== undefined) process.stderr.write(`${name}: hint: ${fault.hint}\n`)
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
