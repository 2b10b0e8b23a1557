/**
 * The chains of one proxy, by the process tree that they are of.
 *
 * A dump takes the chain of its tree away, and only a round that the cache has sealed brings it back: whatever fails, or clears the kernel's
 * marks of changed pages behind our back, leaves none, and the next dump begins anew.
 */
import type { SnapshotId } from '../format/names.ts'
import { openProcess, startTime } from '../kernel/process.ts'
import { type Chain, newChain } from './layers.ts'

export interface Chains {
  /** The one that goes on with a dump of this tree, or a new one. */
  take(tree: number, newId: () => SnapshotId): Chain
  /** Its round is sealed. */
  keep(tree: number, chain: Chain): void
  /** Somebody dumps this tree in another way. */
  breakOff(tree: number): void
  /** No more dumps come. */
  close(): void
}

interface Kept {
  chain: Chain
  start: number | undefined
  /** Nobody waits for its end any more. */
  release(): void
}

/** `onOver` is told of each chain of rounds that no dump can go on with: the cache still has them. */
export function openChains(onOver: (chain: Chain) => void): Chains {
  const kept = new Map<number, Kept>()

  function remove(tree: number): Kept | undefined {
    const found = kept.get(tree)
    kept.delete(tree)
    found?.release()
    return found
  }

  function breakOff(tree: number): void {
    const found = remove(tree)
    if (found !== undefined) onOver(found.chain)
  }

  return {
    take(tree, newId) {
      if (kept.get(tree)?.start !== startTime(tree)) breakOff(tree)
      return remove(tree)?.chain ?? newChain(newId())
    },
    keep(tree, chain) {
      breakOff(tree)
      const task = openProcess(tree)
      const entry: Kept = { chain, start: startTime(tree), release: () => task?.close() }
      kept.set(tree, entry)
      const over = (): void => {
        if (kept.get(tree) === entry) breakOff(tree)
      }
      if (task === undefined) over()
      else task.ended.then(over, () => {})
    },
    breakOff,
    close() {
      for (const tree of [...kept.keys()]) breakOff(tree)
    },
  }
}
