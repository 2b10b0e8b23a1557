/** Options that several commands have, one by one, each with its help and its default. */
import type { ParseArgsConfig, parseArgs } from 'node:util'
import { type SnapshotId, snapshotId } from '../format/names.ts'

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

/** Undefined: a fresh one, or whichever the peer has. Throws `USAGE`. */
export function readSnapshot({ snapshot }: ValuesOf<typeof snapshotOption>): SnapshotId | undefined {
  return snapshot === undefined ? undefined : snapshotId(snapshot, 'USAGE')
}

/** Where a cache listens, and where its clients look for it. */
export const addressOption = { address: { type: 'string', default: '127.0.0.1' } } as const

/** In seconds. */
export const timeoutOption = { timeout: { type: 'string', default: '60' } } as const
