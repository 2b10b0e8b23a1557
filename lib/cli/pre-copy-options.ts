/** The command line of pre-copy. */
import { commandName } from '../command-name.ts'
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
  untilHelp,
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

const preCopy = commandName('pre-copy')

export const preCopyUsage = `usage: ${preCopy} -t PID --address HOST --port N [OPTIONS] [-- CRIU OPTIONS]
       ${preCopy} --settle ID --address HOST --port N [-D DIR]

Moves the process tree PID to the image-cache at HOST. It copies the memory with criu
pre-dump while the process runs, then copies again what the process has changed, and so
on, and freezes the process only for the rest. Needs a kernel that tracks changed pages
(CONFIG_MEM_SOFT_DIRTY).

  -t, --tree PID       the process, with its children
      --address HOST   the host of the cache (default: ${preCopyOptions.address.default})
      --port N         the port of the cache
rounds go on while each sends at least a tenth less than the one before, until one of:
      --downtime-goal MS   the predicted freeze is at most MS milliseconds
      --floor SIZE         a round has sent at most SIZE (default: ${preCopyOptions.floor.default})
      --max-rounds N       N rounds are done, 1 to ${MOST_ROUNDS} (default: ${preCopyOptions['max-rounds'].default})

${untilHelp}
      --timeout SEC    how long the cache may be unreachable or take to agree, and how long
                       criu may be silent (default: ${preCopyOptions.timeout.default})
      --settle ID      tell the cache what became of the process of snapshot ID, which an
                       earlier ${preCopy} handed over
  -D, --dir DIR        where verdicts are kept (default: ${HOLD_DIRECTORY})
${snapshotHelp}
${criuHelp}
${sendHelp}
${dedupHelp}
${commonHelp}

${credentialHelp}

${exitCodeHelp}

example, on the source host:
  ${preCopy} -v -t $PID --port 9997 --downtime-goal 200`

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
      pid: readPid(required('--tree', tree, `${preCopy} --help`)),
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
