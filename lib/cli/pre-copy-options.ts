/** The command line of pre-copy. */
import { HOLD_DIRECTORY } from '../defaults.ts'
import { type Until, untils } from '../format/enums.ts'
import { type SnapshotId, snapshotId } from '../format/names.ts'
import { parseSize } from '../size.ts'
import {
  addressOption,
  commonHelp,
  criuHelp,
  criuOption,
  snapshotHelp,
  snapshotOption,
  timeoutOption,
  untilOption,
  type ValuesOf,
} from './common-options.ts'
import { credentialHelp, credentialOptions, type Protection, readCredentials } from './credential-options.ts'
import { exitCodeHelp } from './exit-codes.ts'
import { atMostOne, oneOf, readPid, required, timeoutMs, wholeNumber } from './parse.ts'
import { dedupHelp, dedupOption, readSendOptions, type SendChoice, sendHelp, sendOptions } from './send-options.ts'

export const preCopyOptions = {
  tree: { type: 'string', short: 't' },
  ...addressOption,
  port: { type: 'string' },
  'downtime-goal': { type: 'string' },
  floor: { type: 'string', default: '1M' },
  'max-rounds': { type: 'string', default: '8' },
  ...untilOption,
  ...timeoutOption,
  settle: { type: 'string' },
  dir: { type: 'string', short: 'D' },
  ...snapshotOption,
  ...criuOption,
  ...sendOptions,
  ...dedupOption,
  ...credentialOptions,
} as const

const MOST_ROUNDS = 1000
/** A minute is no downtime goal. */
const LONGEST_GOAL_MS = 60_000

const defaults = {
  address: preCopyOptions.address.default,
  floor: preCopyOptions.floor.default,
  rounds: preCopyOptions['max-rounds'].default,
  timeout: preCopyOptions.timeout.default,
}

export const preCopyUsage = `usage: pre-copy -t PID --address HOST --port N [OPTIONS] [-- CRIU OPTIONS]
       pre-copy --settle ID --address HOST --port N [-D DIR]

Moves the process tree PID to the image-cache at HOST: copies its memory with criu
pre-dump while it runs, then again what it changed, and so on, and stops it only for
what is left. Needs a kernel that tracks changed pages (CONFIG_MEM_SOFT_DIRTY).

  -t, --tree PID       the process, with its children
      --address HOST   where the cache is (default: ${defaults.address})
      --port N         the cache's port
rounds go on while each sends at least a tenth less than the one before, until one of:
      --downtime-goal MS   the freeze that is predicted is that short
      --floor SIZE         a round sent no more than SIZE (default: ${defaults.floor})
      --max-rounds N       there were N, 1 to ${MOST_ROUNDS} (default: ${defaults.rounds})

      --until sealed   let the process go when the cache has it all (the default)
      --until running  let it go when the target has restored it and holds it
      --timeout SEC    how long the cache may be out of reach, and may take to agree,
                       and criu may say nothing (default: ${defaults.timeout})
      --settle ID      tell the cache what became of the process of an earlier one
  -D, --dir DIR        where verdicts are kept (default: ${HOLD_DIRECTORY})
${snapshotHelp}
${criuHelp}
${sendHelp}
${dedupHelp}
${commonHelp}

${credentialHelp}

${exitCodeHelp}

example, on the source host:
  pre-copy -v -t $PID --port 9997 --downtime-goal 200`

interface StopRuleChoice {
  mostRounds: number
  /** Bytes. */
  floor: number
  downtimeGoalMs: number | undefined
}

interface PreCopyChoice {
  address: string
  port: number
  protection: Protection
  directory: string | undefined
  timeoutMs: number
  job:
    | { kind: 'settle'; settled: SnapshotId }
    | {
        kind: 'move'
        pid: number
        /** Undefined: the one that is found. */
        criu: string | undefined
        criuOptions: readonly string[]
        /** A fresh one if undefined. */
        id: SnapshotId | undefined
        until: Until
        send: SendChoice
        rule: StopRuleChoice
      }
}

/** What pre-copy is to do. `criuOptions`: what follows `--`. Throws `USAGE`. */
export function readPreCopyOptions(
  values: ValuesOf<typeof preCopyOptions>,
  criuOptions: readonly string[],
): PreCopyChoice {
  const { tree, address, dir, snapshot, settle, criu } = values
  const port = wholeNumber('--port', required('--port', values.port, "the cache's port"), 1, 65535)
  atMostOne({ '--tree': tree, '--settle': settle })
  const common = {
    ...{ address, port, directory: dir },
    protection: readCredentials(values),
    timeoutMs: timeoutMs(values.timeout),
  }
  if (settle !== undefined) return { ...common, job: { kind: 'settle', settled: snapshotId(settle, 'USAGE') } }
  return {
    ...common,
    job: {
      kind: 'move',
      pid: readPid(required('--tree', tree, 'pre-copy --help')),
      id: snapshot === undefined ? undefined : snapshotId(snapshot, 'USAGE'),
      until: oneOf('--until', values.until, untils),
      send: readSendOptions(values),
      criu,
      criuOptions,
      rule: readStopRule(values),
    },
  }
}

function readStopRule(values: ValuesOf<typeof preCopyOptions>): StopRuleChoice {
  const goal = values['downtime-goal']
  return {
    mostRounds: wholeNumber('--max-rounds', values['max-rounds'], 1, MOST_ROUNDS),
    floor: parseSize(values.floor),
    downtimeGoalMs: goal === undefined ? undefined : wholeNumber('--downtime-goal', goal, 0, LONGEST_GOAL_MS),
  }
}
