/**
 * What a source owes its target: the verdict, written down before the target can be `ready` and kept until it is
 * delivered. The file does not say what the verdict is, but which tasks decide it: so it is right whenever the source dies.
 */
import {
  closeSync,
  existsSync,
  fsyncSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { Fault, type FaultCode } from '../fault.ts'
import { type SnapshotId, snapshotId } from '../format/names.ts'
import { NO_TOKEN } from '../format/wire.ts'
import type { Fate, Verdict } from '../format/words.ts'
import { frameReader, frameWriter } from '../stream/frames.ts'
import type { Link } from '../stream/link.ts'
import { unexpected } from '../stream/receive.ts'
import { fateOf, type Member, type Tree } from './tree.ts'

export interface Owed extends Pick<Tree, 'criu' | 'tasks'> {
  id: SnapshotId
  /** Of the hand-over, in hex: the file is its owner's only. */
  token: string
  /** After a reboot numbers mean other processes, and the tasks are gone. */
  boot: string
}

const SUFFIX = '.owed'

function thisBoot(): string {
  return readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim()
}

/** Why a snapshot cannot have this id: what became of an earlier one of that id is not known to its target. */
export function owedAlready(directory: string, id: SnapshotId): Fault | undefined {
  if (!existsSync(owedPath(directory, id))) return undefined
  return new Fault('EXISTS', `the verdict of an earlier snapshot ${id} is still owed to its target`, {
    hint: 'choose another --snapshot ID, or wait until the target was reached',
  })
}

/** Writes it into `directory`, safe from a crash of this host where the file system is. Throws `IO`, and `EXISTS`. */
export function writeOwed(
  directory: string,
  id: SnapshotId,
  token: Buffer,
  { criu, tasks }: Pick<Tree, 'criu' | 'tasks'>,
): Owed {
  const owed: Owed = { id, token: token.toString('hex'), boot: thisBoot(), criu, tasks }
  const path = owedPath(directory, id)
  const already = owedAlready(directory, id)
  if (already !== undefined) throw already
  try {
    const file = openSync(`${path}.new`, 'w', 0o600)
    writeSync(file, `${JSON.stringify(owed)}\n`)
    fsyncSync(file)
    closeSync(file)
    renameSync(`${path}.new`, path)
    const folder = openSync(directory, 'r')
    fsyncSync(folder)
    closeSync(folder)
  } catch (cause) {
    rmSync(`${path}.new`, { force: true })
    throw new Fault('IO', `cannot write ${path} (${(cause as NodeJS.ErrnoException).code})`, {
      hint: 'make room there: the verdict of a hand-over must be on disk before it is given',
      cause,
    })
  }
  return owed
}

/** The file of a debt. */
export function owedPath(directory: string, id: SnapshotId): string {
  return join(directory, `${id}${SUFFIX}`)
}

/** Forgets it: it was delivered, or never can be. */
export function settleOwed(directory: string, id: SnapshotId): void {
  rmSync(owedPath(directory, id), { force: true })
}

/** What a proxy before us left in `directory`. Files that it did not finish are ignored. */
export function readOwed(directory: string): Owed[] {
  return readdirSync(directory)
    .filter((name) => name.endsWith(SUFFIX))
    .flatMap((name) => {
      try {
        const { id, token, boot, criu, tasks } = JSON.parse(readFileSync(join(directory, name), 'utf8')) as Owed
        if (typeof boot !== 'string' || !/^[0-9a-f]{32}$/.test(token) || ![criu, ...tasks].every(isMember)) return []
        return [{ id: snapshotId(id), token, boot, criu, tasks }]
      } catch {
        return []
      }
    })
}

function isMember({ pid, start }: Member): boolean {
  return Number.isSafeInteger(pid) && Number.isSafeInteger(start)
}

/** The verdict that what happened to the tasks asks for; undefined while their criu still works. */
export function verdictFor(owed: Owed): Verdict | undefined {
  if (owed.boot !== thisBoot()) return 'go'
  const fate = fateOf(owed)
  return fate === undefined ? undefined : fate === 'dead' ? 'go' : 'drop'
}

export interface Delivered {
  verdict: Verdict
  fate: Fate
}

const RETRY_MS = 300
/** A link that is made and stays silent is left for another one. */
const TRY_MS = 10_000

/**
 * Delivers the verdict over new connections, again and again until the target answers or `signal` comes. Returns it, and
 * what became of the target's tasks. Throws `MISSING` if the target does not know the snapshot, and the signal's reason.
 */
export async function deliver(
  owed: Owed,
  connect: (signal: AbortSignal) => Promise<Link>,
  signal: AbortSignal,
): Promise<Delivered> {
  for (;;) {
    signal.throwIfAborted()
    const verdict = verdictFor(owed)
    try {
      if (verdict !== undefined) {
        const limit = AbortSignal.any([signal, AbortSignal.timeout(TRY_MS)])
        return {
          verdict,
          fate: await tell(await connect(limit), { ...owed, token: Buffer.from(owed.token, 'hex'), verdict }, limit),
        }
      }
    } catch (error) {
      if (!(error instanceof Fault || (error as Error).name === 'TimeoutError')) throw error
      // It never had all images, or has dropped them.
      if (codeOf(error) === 'MISSING' && verdict === 'drop') return { verdict, fate: 'dropped' }
      if (codeOf(error) === 'MISSING') throw error
    }
    await setTimeout(RETRY_MS, undefined, { signal }).catch(() => {})
  }
}

function codeOf(error: unknown): FaultCode | undefined {
  return error instanceof Fault ? error.code : undefined
}

/** A verdict; without a token for those who believe us anyway: at a socket of our own user. */
export interface Said {
  id: SnapshotId
  verdict: Verdict
  token?: Buffer
}

/** One try on a link of its own, which is closed. Throws `REFUSED` and the like, and `LINK`. */
export async function tell(link: Link, said: Said, signal?: AbortSignal): Promise<Fate> {
  const cut = (): void => link.destroy(signal?.reason as Error)
  signal?.addEventListener('abort', cut)
  try {
    const reader = frameReader(link.inlet)
    // Not every target greets before it is spoken to.
    const { id, verdict, token = NO_TOKEN } = said
    await frameWriter(link.outlet).send({ type: 'verdict', verdict, token, id })
    const hello = await reader.expect()
    if (hello.type !== 'hello') throw unexpected(hello)
    const answer = await reader.expect()
    if (answer.type === 'refused') throw new Fault(answer.code, answer.reason)
    if (answer.type !== 'fate') throw unexpected(answer)
    return answer.fate
  } finally {
    signal?.removeEventListener('abort', cut)
    link.destroy()
  }
}
