/** The command line of pre-copy. */
import { commandName } from '../command-name.ts'
import { HOLD_DIRECTORY } from '../defaults.ts'
import { untils } from '../format/enums.ts'
import { snapshotId } from '../format/names.ts'
import { parseSize } from '../size.ts'
import { commonHelp, criuHelp, criuOption, readSnapshot, snapshotHelp, type ValuesOf } from './common-options.ts'
import { credentialHelp } from './credential-options.ts'
import { exitCodeHelp } from './exit-codes.ts'
import { atMostOne, oneOf, readPid, required, timeoutMs, wholeNumber } from './parse.ts'
import { readSendOptions } from './send-options.ts'
import {
  agreementHelp,
  cacheAddressHelp,
  readCacheEndpoint,
  sendToCacheHelp,
  toCacheOptions,
} from './to-cache-options.ts'

export const preCopyOptions = {
  tree: { type: 'string', short: 't' },
  'downtime-goal': { type: 'string' },
  floor: { type: 'string', default: '1M' },
  'max-rounds': { type: 'string', default: '8' },
  settle: { type: 'string' },
  dir: { type: 'string', short: 'D' },
  ...criuOption,
  ...toCacheOptions,
} as const

const MOST_ROUNDS = 1000
/** A minute is no downtime goal. */
const LONGEST_GOAL_MS = 60_000

const preCopy = commandName('pre-copy')

const usage = `usage: ${preCopy} -t PID --address HOST --port N [OPTIONS] [-- CRIU OPTIONS]
       ${preCopy} --settle ID --address HOST --port N [-D DIR]

Moves the process tree PID to the image-cache at HOST. It copies the memory with criu
pre-dump while the process runs, then copies again what the process has changed, and so
on, and freezes the process only for the rest. Needs a kernel that tracks changed pages
(CONFIG_MEM_SOFT_DIRTY).

  -t, --tree PID       the process, with its children
${cacheAddressHelp}
rounds go on while each sends at least a tenth less than the one before, until one of:
      --downtime-goal MS   the predicted freeze is at most MS milliseconds
      --floor SIZE         a round has sent at most SIZE (default: ${preCopyOptions.floor.default})
      --max-rounds N       N rounds are done, 1 to ${MOST_ROUNDS} (default: ${preCopyOptions['max-rounds'].default})

${agreementHelp}
      --settle ID      tell the cache what became of the process of snapshot ID, which an
                       earlier ${preCopy} handed over
  -D, --dir DIR        where verdicts are kept (default: ${HOLD_DIRECTORY})
${snapshotHelp}
${criuHelp}
${sendToCacheHelp}
${commonHelp}

${credentialHelp}

${exitCodeHelp}

example, on the source host:
  ${preCopy} -v -t $PID --port 9997 --downtime-goal 200`

export const preCopyCommand = { name: preCopy, usage, options: preCopyOptions }

type Values = ValuesOf<typeof preCopyOptions>

/** What pre-copy is to do. `criuOptions`: what follows `--`. Throws `USAGE`. */
export function readPreCopyOptions(values: Values, criuOptions: readonly string[]) {
  const { insecure, dir: directory, timeout } = values
  const cache = readCacheEndpoint(values)
  return { cache, insecure, directory, timeoutMs: timeoutMs(timeout), job: readJob(values, criuOptions) }
}

function readJob(values: Values, criuOptions: readonly string[]) {
  const { tree, settle, criu, until, floor, 'max-rounds': most, 'downtime-goal': goal } = values
  atMostOne({ '--tree': tree, '--settle': settle })
  if (settle !== undefined) return { kind: 'settle' as const, settled: snapshotId(settle, 'USAGE') }
  return {
    kind: 'move' as const,
    pid: readPid(required('--tree', tree, `${preCopy} --help`)),
    id: readSnapshot(values),
    until: oneOf('--until', until, untils),
    send: readSendOptions(values),
    /** Undefined: the one that is found. */
    criu,
    criuOptions,
    rule: {
      mostRounds: wholeNumber('--max-rounds', most, 1, MOST_ROUNDS),
      /** Bytes. */
      floor: parseSize(floor),
      downtimeGoalMs: goal === undefined ? undefined : wholeNumber('--downtime-goal', goal, 0, LONGEST_GOAL_MS),
    },
  }
}
