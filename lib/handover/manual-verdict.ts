/** Gives the verdict of a person, where the source cannot give it. */
import { existsSync, rmSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { connectWithin } from '../criu/work-directory.ts'
import { Fault } from '../fault.ts'
import type { Fate, Verdict } from '../format/enums.ts'
import type { SnapshotId } from '../format/names.ts'
import type { Fd } from '../kernel/fd.ts'
import { fdLink } from '../stream/fd-link.ts'
import { sendVerdict } from './deliver-verdict.ts'
import { type RecoveredRestore, recoverRestores } from './recover.ts'
import { holdSocket } from './standalone-target.ts'
import { TargetHandover } from './target.ts'

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
  return sendVerdict(fdLink(socket, 'the holder', 'socket'), { id, verdict })
}

async function decideOrphan({ id, held, ended, remove }: RecoveredRestore, verdict: Verdict): Promise<Fate> {
  const handover = new TargetHandover(id, () => {})
  handover.restore()
  handover.restored(held)
  try {
    return await handover.decide(verdict)
  } finally {
    await ended
    remove()
  }
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
