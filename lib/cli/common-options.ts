/** Options that several commands have, one by one, each with its help and its default. */
import type { ParseArgsConfig, parseArgs } from 'node:util'

export type Options = NonNullable<ParseArgsConfig['options']>
/** What `parseArgs` makes of a command line with the options `Spec`. */
export type ValuesOf<Spec extends Options> = ReturnType<typeof parseArgs<{ options: Spec }>>['values']

/** Every command has these. */
export const commonOptions = {
  help: { type: 'boolean', short: 'h' },
  version: { type: 'boolean', short: 'V' },
  verbose: { type: 'boolean', short: 'v' },
  quiet: { type: 'boolean', short: 'q' },
} as const satisfies Options

/** For a command that ends by itself. */
export const commonHelp = `  -v, --verbose        report progress         -q, --quiet    report only errors
  -h, --help           print this text         -V, --version  print the version`

/** For a daemon, which reports progress without `--verbose`. */
export const daemonCommonHelp = `  -v, -v4, --verbose   report also the causes of failures
  -q, --quiet          report only errors
  -h, --help           print this text         -V, --version  print the version`

export const criuOption = { criu: { type: 'string' } } as const
export const criuHelp = `      --criu PATH      the criu to run (default: $FERRY_CRIU, else the one that npm run setup
                       fetched, else the one in $PATH)`

export const snapshotOption = { snapshot: { type: 'string' } } as const
/** For a command that makes the snapshot. */
export const snapshotHelp = `      --snapshot ID    the name of the snapshot (default: made from the time, the host name
                       and random characters)`

/** Where a cache listens, and where its clients look for it. */
export const addressOption = { address: { type: 'string', default: '127.0.0.1' } } as const

/** In seconds. */
export const timeoutOption = { timeout: { type: 'string', default: '60' } } as const

/** For a command that sends to a cache. */
export const untilOption = { until: { type: 'string', default: 'sealed' } } as const
export const untilHelp = `      --until WHAT     let the process go when the cache has all images (sealed, the default),
                       or when the target has restored it and holds it (running)`
