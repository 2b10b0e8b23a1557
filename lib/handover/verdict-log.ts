/**
 * The verdicts of a source on disk: a file for each, written before the target can be `ready`, and removed when the
 * verdict was delivered. The first line names the tasks whose end is the verdict, so that it is right whenever the
 * source dies. Each line after it is a word for the stage: the tasks do not decide before the source lets go, nor after
 * they were seen to run on, for then they may end by themselves.
 */
import {
  closeSync,
  constants,
  fstatSync,
  fsyncSync,
  lstatSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import { isAlive, type TaskId, treeFate, type WatchedTree } from '../criu/process-tree.ts'
import { Fault } from '../fault.ts'
import type { Verdict } from '../format/enums.ts'
import { type SnapshotId, snapshotId } from '../format/names.ts'
import { openOwnFile } from '../kernel/own-file.ts'

export interface PendingVerdict extends Pick<WatchedTree, 'criu' | 'tasks'> {
  id: SnapshotId
  /** The token of the hand-over, in hex: only its owner can read the file. */
  token: string
  /** The boot id: after a reboot the numbers mean other processes, and the tasks are gone. */
  boot: string
  stage: VerdictStage
  /** The path of the file. */
  path: string
}

/**
 * `held`: criu waits at its gate; the process that held it there is gone when another process reads this. `let go`: the
 * tasks decide. `resumed`: the tasks run on.
 */
export type VerdictStage = (typeof stages)[number]
const stages = ['held', 'let go', 'resumed'] as const
/** The word of each stage in the file. */
const words: Record<VerdictStage, string> = { held: 'held', 'let go': 'let go', resumed: 'kept' }

const SUFFIX = '.owed'
const { O_APPEND, O_CREAT, O_EXCL, O_RDONLY, O_WRONLY } = constants
/** The largest file that is read, in bytes; a task takes about 40. */
const LARGEST = 2 ** 24

function thisBoot(): string {
  return readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim()
}

/** `EXISTS` where a snapshot cannot have this id, because the verdict of an earlier one is not delivered. */
export function verdictPendingFault(directory: string, id: SnapshotId): Fault | undefined {
  if (lstatSync(join(directory, `${id}${SUFFIX}`), { throwIfNoEntry: false }) === undefined) return undefined
  return new Fault('EXISTS', `the verdict of an earlier snapshot ${id} is not delivered to its target yet`, {
    hint: 'choose another --snapshot ID, or wait until the target was reached',
  })
}

/**
 * Writes a verdict into `directory`, and on to the disk (fsync). Throws `IO`, and `EXISTS` like `verdictPendingFault`.
 */
export function writePendingVerdict(
  directory: string,
  id: SnapshotId,
  token: Buffer,
  { criu, tasks }: Pick<WatchedTree, 'criu' | 'tasks'>,
  stage: VerdictStage,
): PendingVerdict {
  const pending = { id, token: token.toString('hex'), boot: thisBoot(), criu, tasks }
  const path = join(directory, `${id}${SUFFIX}`)
  const already = verdictPendingFault(directory, id)
  if (already !== undefined) throw already
  try {
    // A source that was killed at this point left it.
    rmSync(`${path}.new`, { force: true })
    write(`${path}.new`, O_CREAT | O_EXCL, `${JSON.stringify(pending)}\n${words[stage]}\n`)
    renameSync(`${path}.new`, path)
    const folder = openSync(directory, 'r')
    fsyncSync(folder)
    closeSync(folder)
  } catch (cause) {
    rmSync(`${path}.new`, { force: true })
    throw unwrittenFault(path, cause)
  }
  return { ...pending, stage, path }
}

/** Writes on to the disk. */
function write(path: string, flags: number, text: string): void {
  const file = openOwnFile(path, O_WRONLY | flags)
  try {
    writeSync(file, text)
    fsyncSync(file)
  } finally {
    closeSync(file)
  }
}

function unwrittenFault(path: string, cause: unknown): Fault {
  const why = cause instanceof Fault ? cause.message : (cause as NodeJS.ErrnoException).code
  return new Fault('IO', `cannot write ${path} (${why})`, {
    hint: 'make room there: the verdict of a hand-over must be on disk before it is given',
    cause,
  })
}

/** Writes down that the tasks decide from now on: CRIU may kill them as soon as this returns. Throws `IO`. */
export function markLetGo(pending: PendingVerdict): void {
  if (pending.stage === 'held') mark(pending, 'let go')
}

function mark(pending: PendingVerdict, stage: VerdictStage): void {
  try {
    // Without O_CREAT: a file without its first line means nothing.
    write(pending.path, O_APPEND, `${words[stage]}\n`)
  } catch (cause) {
    throw unwrittenFault(pending.path, cause)
  }
  pending.stage = stage
}

/** Removes the file of a verdict that was delivered, or never can be. */
export function forgetVerdict(pending: PendingVerdict): void {
  rmSync(pending.path, { force: true })
}

/**
 * The verdicts that an earlier process left in `directory`. Files that are incomplete, and files that other users could
 * have written, are ignored.
 */
export function readPendingVerdicts(directory: string): PendingVerdict[] {
  return readdirSync(directory)
    .filter((name) => name.endsWith(SUFFIX))
    .flatMap((name) => read(join(directory, name)))
}

function read(path: string): PendingVerdict[] {
  try {
    // The text after the last end of a line is incomplete.
    const [head = '', ...stagesWritten] = textOf(path).split('\n').slice(0, -1)
    const { id, token, boot, criu, tasks } = JSON.parse(head) as PendingVerdict
    if (typeof boot !== 'string' || !/^[0-9a-f]{32}$/.test(token) || ![criu, ...tasks].every(isMember)) return []
    // Earlier versions wrote no word: their tasks decide.
    const stage = stages.find((one) => words[one] === stagesWritten.at(-1)) ?? 'let go'
    return [{ id: snapshotId(id), token, boot, criu, tasks, stage, path }]
  } catch {
    return []
  }
}

function textOf(path: string): string {
  const file = openOwnFile(path, O_RDONLY)
  try {
    const { mode, size } = fstatSync(file)
    return (mode & 0o077) === 0 && size <= LARGEST ? readFileSync(file, 'utf8') : ''
  } finally {
    closeSync(file)
  }
}

function isMember({ pid, start }: TaskId): boolean {
  return Number.isSafeInteger(pid) && Number.isSafeInteger(start)
}

/**
 * The verdict, by what happened to the tasks; undefined while their criu still works. Tasks that run on are written
 * down as `resumed`: they may end by themselves before the target is told.
 */
export function verdictFor(pending: PendingVerdict): Verdict | undefined {
  if (pending.stage === 'resumed') return 'drop'
  if (pending.boot !== thisBoot()) return 'go'
  const over = !isAlive(pending.criu)
  // The source may be another process that is alive, and let go meanwhile. A stage that is read after criu has ended is
  // final.
  const [latest] = read(pending.path)
  const held = (latest ?? pending).stage === 'held'
  const fate = !held ? treeFate(pending) : over ? 'alive' : undefined
  if (fate !== 'alive') return fate === undefined ? undefined : 'go'
  try {
    mark(pending, 'resumed')
  } catch {
    // Then it is known for as long as this process lives.
    pending.stage = 'resumed'
  }
  return 'drop'
}
