/**
 * Held restores that outlive their holder: a copy that is held may be the only one, so whoever is killed or stopped leaves it at
 * its gate, and another process in the same place takes it over, with the name that was written on it.
 */

import { type OrphanedGate, recoverGates } from '../criu/action-script.ts'
import { heldTasks } from '../criu/process-tree.ts'
import type { HeldRestore } from '../criu/restore.ts'
import { abandoned, type PrivateDirectory, privateDirectory } from '../criu/work-directory.ts'
import { type SnapshotId, snapshotId } from '../format/names.ts'
import { NO_TOKEN } from '../format/wire.ts'
import { openProcess } from '../kernel/process.ts'

/** How the directories of our own restores begin. */
const HELD = '.ferry-restore-'

/** A directory in `place` for the gate of one restore. Throws `IO`. */
export function restoreDirectory(place: string): PrivateDirectory {
  return privateDirectory(place, HELD)
}

/** What is written on the gate of a restore. `token`: what a verdict must show. */
export function restoreLabel(id: SnapshotId, token: Buffer = NO_TOKEN): string {
  return `${id} ${token.toString('hex')}`
}

/** A restore that was taken over: without images, but alive. */
export interface RecoveredRestore {
  id: SnapshotId
  token: Buffer
  held: HeldRestore
  /** Its criu's end. */
  ended: Promise<void>
  /** Takes away what is left of it: afterwards. */
  remove(): void
}

/** Takes over what dead holders left in `place`, and clears away what waits for nobody; or only the restore of `id`. */
export function recoverRestores(place: string, id?: SnapshotId): RecoveredRestore[] {
  const isWanted = id && ((label: string): boolean => label.split(' ')[0] === id)
  const inPlace = recoverGates(place, isWanted).map((orphan) => adopted(orphan))
  const apart = abandoned(place, new RegExp(`^\\${HELD}`)).flatMap((directory) => {
    const [orphan] = recoverGates(directory.path, isWanted)
    if (orphan !== undefined) return [adopted(orphan, directory)]
    if (id === undefined) directory.remove()
    else directory.release()
    return []
  })
  return [...inPlace, ...apart]
}

function adopted({ pid, gate, label }: OrphanedGate, directory?: PrivateDirectory): RecoveredRestore {
  const criu = openProcess(pid)
  const ended = criu?.ended ?? Promise.resolve()
  const runs = Promise.race([gate.resumed.then(() => true), ended.then(() => false)])
  const tasks = heldTasks(pid)
  runs.then(tasks.settle, () => {})
  const [name = '', token = ''] = label.split(' ')
  return {
    id: snapshotId(name),
    token: Buffer.from(token, 'hex'),
    held: { open: gate.open, shut: gate.shut, runs },
    ended,
    remove() {
      gate.remove()
      directory?.remove()
      criu?.close()
    },
  }
}
