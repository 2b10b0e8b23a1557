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
export const commonHelp = `  -v, --verbose        say what happens        -q, --quiet    only errors
  -h, --help           this text               -V, --version`

/** For a daemon, which says what happens without `--verbose`. */
export const daemonCommonHelp = '  -q, --quiet          only errors     -h, --help   this text     -V, --version'

export const criuOption = { criu: { type: 'string' } } as const
export const criuHelp = '      --criu PATH      which criu (default: $FERRY_CRIU, the fetched one, $PATH)'

export const snapshotOption = { snapshot: { type: 'string' } } as const
/** For a command that makes the snapshot. */
export const snapshotHelp = '      --snapshot ID    name of the snapshot (default: time, host, random)'

/** Where a cache listens, and where it is looked for. */
export const addressOption = { address: { type: 'string', default: '127.0.0.1' } } as const

/** In seconds. */
export const timeoutOption = { timeout: { type: 'string', default: '60' } } as const

/** For a command that sends to a cache. */
export const untilOption = { until: { type: 'string', default: 'sealed' } } as const
