/**
 * What a source owes its target: the verdict, written down before the target can be `ready` and kept until it is
 * delivered. The file says which tasks decide it, so that it is right whenever the source dies, and, a word a line, whether
 * they still do: not before the source lets go, nor after they were seen to run on, for then they may end by themselves.
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
  /** Of the hand-over, in hex: the file is its owner's only. */
  token: string
  /** After a reboot numbers mean other processes, and the tasks are gone. */
  boot: string
  stage: VerdictStage
  /** The file. */
  path: string
}

/** `held`: criu waits, and whoever held it is gone if this is read. `let go`: the tasks decide. `resumed`: they run on. */
export type VerdictStage = (typeof stages)[number]
const stages = ['held', 'let go', 'resumed'] as const
/** The words in the file. */
const words: Record<VerdictStage, string> = { held: 'held', 'let go': 'let go', resumed: 'kept' }

const SUFFIX = '.owed'
const { O_APPEND, O_CREAT, O_EXCL, O_RDONLY, O_WRONLY } = constants
/** Bytes of a file; a task takes about 40 of them. */
const LARGEST = 2 ** 24

function thisBoot(): string {
  return readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim()
}

/** Why a snapshot cannot have this id: what became of an earlier one of that id is not known to its target. */
export function verdictPending(directory: string, id: SnapshotId): Fault | undefined {
  if (lstatSync(join(directory, `${id}${SUFFIX}`), { throwIfNoEntry: false }) === undefined) return undefined
  return new Fault('EXISTS', `the verdict of an earlier snapshot ${id} is still owed to its target`, {
    hint: 'choose another --snapshot ID, or wait until the target was reached',
  })
}

/** Writes it into `directory`, safe from a crash of this host where the file system is. Throws `IO`, and `EXISTS`. */
export function writePendingVerdict(
  directory: string,
  id: SnapshotId,
  token: Buffer,
  { criu, tasks }: Pick<WatchedTree, 'criu' | 'tasks'>,
  stage: VerdictStage,
): PendingVerdict {
  const owed = { id, token: token.toString('hex'), boot: thisBoot(), criu, tasks }
  const path = join(directory, `${id}${SUFFIX}`)
  const already = verdictPending(directory, id)
  if (already !== undefined) throw already
  try {
    // Left by one that was killed here.
    rmSync(`${path}.new`, { force: true })
    const file = openOwnFile(`${path}.new`, O_WRONLY | O_CREAT | O_EXCL)
    try {
      writeSync(file, `${JSON.stringify(owed)}\n${words[stage]}\n`)
      fsyncSync(file)
    } finally {
      closeSync(file)
    }
    renameSync(`${path}.new`, path)
    const folder = openSync(directory, 'r')
    fsyncSync(folder)
    closeSync(folder)
  } catch (cause) {
    rmSync(`${path}.new`, { force: true })
    throw unwritten(path, cause)
  }
  return { ...owed, stage, path }
}

function unwritten(path: string, cause: unknown): Fault {
  const why = cause instanceof Fault ? cause.message : (cause as NodeJS.ErrnoException).code
  return new Fault('IO', `cannot write ${path} (${why})`, {
    hint: 'make room there: the verdict of a hand-over must be on disk before it is given',
    cause,
  })
}

/** From now on the tasks decide: CRIU may kill them as soon as this returns. Safe like `writeOwed`. Throws `IO`. */
export function markLetGo(owed: PendingVerdict): void {
  if (owed.stage === 'held') mark(owed, 'let go')
}

function mark(owed: PendingVerdict, stage: VerdictStage): void {
  try {
    // Never made anew: without its first line it says nothing.
    const file = openOwnFile(owed.path, O_WRONLY | O_APPEND)
    try {
      writeSync(file, `${words[stage]}\n`)
      fsyncSync(file)
    } finally {
      closeSync(file)
    }
  } catch (cause) {
    throw unwritten(owed.path, cause)
  }
  owed.stage = stage
}

/** Forgets it: it was delivered, or never can be. */
export function forgetVerdict(owed: PendingVerdict): void {
  rmSync(owed.path, { force: true })
}

/**
 * What a proxy before us left in `directory`. Files that it did not finish are ignored, and those that others could
 * have written.
 */
export function readPendingVerdicts(directory: string): PendingVerdict[] {
  return readdirSync(directory)
    .filter((name) => name.endsWith(SUFFIX))
    .flatMap((name) => read(join(directory, name)))
}

function read(path: string): PendingVerdict[] {
  try {
    // What follows the last end of a line was not written to its end.
    const [owed = '', ...said] = textOf(path).split('\n').slice(0, -1)
    const { id, token, boot, criu, tasks } = JSON.parse(owed) as PendingVerdict
    if (typeof boot !== 'string' || !/^[0-9a-f]{32}$/.test(token) || ![criu, ...tasks].every(isMember)) return []
    // Earlier versions wrote no word, and asked the tasks.
    const stage = stages.find((one) => words[one] === said.at(-1)) ?? 'let go'
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
 * The verdict that what happened to the tasks asks for; undefined while their criu still works. Once they were kept that is
 * written down: they may end by themselves before the target is told.
 */
export function verdictFor(owed: PendingVerdict): Verdict | undefined {
  if (owed.stage === 'resumed') return 'drop'
  if (owed.boot !== thisBoot()) return 'go'
  const over = !isAlive(owed.criu)
  // Whoever dumps may live, and let go: what is said after its criu has ended is the last word.
  const [said] = read(owed.path)
  const held = (said ?? owed).stage === 'held'
  const fate = !held ? treeFate(owed) : over ? 'alive' : undefined
  if (fate !== 'alive') return fate === undefined ? undefined : 'go'
  try {
    mark(owed, 'resumed')
  } catch {
    // It holds as long as we live.
    owed.stage = 'resumed'
  }
  return 'drop'
}
