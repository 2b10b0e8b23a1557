/** Gives the verdict of a person, where the source cannot give it. */
import { existsSync, rmSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { commandName } from '../command-name.ts'
import { connectWithin } from '../criu/work-directory.ts'
import { Fault } from '../fault.ts'
import type { Fate, Verdict } from '../format/enums.ts'
import { NO_TOKEN } from '../format/frame.ts'
import type { SnapshotId } from '../format/names.ts'
import type { Fd } from '../kernel/fd.ts'
import { fdLink } from '../stream/fd-link.ts'
import { sendVerdict } from './deliver-verdict.ts'
import { type RecoveredRestore, recoverRestores } from './recover.ts'
import { TargetHandover } from './target.ts'

/** The name of the socket at which restore-from-socket takes the verdict of a snapshot that it holds. */
export function holdSocket(id: SnapshotId): string {
  return `${id}.sock`
}

/**
 * The command line by which a person gives the verdict, to a cache or to restore-from-socket. `directory`: its work
 * directory, if one was named.
 */
export function manualCommand(
  command: 'cache' | 'restore-from-socket',
  directory: string | undefined,
  id: SnapshotId,
): string {
  const dir = directory === undefined ? '' : ` -D ${directory}`
  return `${commandName(command)}${dir} --let-run ${id}, or --drop ${id}`
}

/**
 * Gives the verdict to the holder that listens at the socket `name` in `directory`, or, where the holder is gone, to
 * the copy itself. Throws `MISSING`, the holder's refusal, `IO` where this user may not connect, and `USAGE` for a
 * directory that others can change.
 */
export async function giveVerdict(
  directory: string,
  name: string,
  { id, verdict }: { id: SnapshotId; verdict: Verdict },
): Promise<Fate> {
  const place = resolve(directory)
  let socket: Fd
  try {
    socket = connectWithin(place, name, `no copy of snapshot ${id} is held in ${directory}`)
  } catch (error) {
    if (!(error instanceof Fault && error.code === 'MISSING')) throw error
    const [orphan] = existsSync(place) ? recoverRestores(place, id) : []
    if (orphan === undefined) throw error
    if (name === holdSocket(id)) rmSync(join(place, name), { force: true })
    return decideOrphan(orphan, verdict)
  }
  return sendVerdict(fdLink(socket, 'the holder', 'socket'), { id, verdict, token: NO_TOKEN })
}

async function decideOrphan({ id, held, finish }: RecoveredRestore, verdict: Verdict): Promise<Fate> {
  const handover = new TargetHandover(id, () => {})
  handover.restore()
  handover.restored(held)
  return handover.decide(verdict).finally(finish)
}

/**
 * Gives the verdict of a person. Throws like `giveVerdict`, and `REFUSED` where the outcome is another one than was
 * asked for.
 */
export async function giveManualVerdict(
  directory: string,
  name: string,
  decision: Parameters<typeof giveVerdict>[2],
): Promise<void> {
  const fate = await giveVerdict(directory, name, decision)
  if ((fate === 'dropped') === (decision.verdict === 'drop')) return
  throw new Fault('REFUSED', `snapshot ${decision.id} is decided already: ${fate}`)
}
