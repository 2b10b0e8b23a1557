/**
 * The chains of one proxy, by process tree.
 *
 * A dump takes the chain of its tree away, and only a round that the cache has sealed puts it back. So after any
 * failure, and after any program that clears the kernel's marks of changed pages without our knowledge, there is no
 * chain, and the next dump starts a new one.
 */
import { Fault } from '../fault.ts'
import type { SnapshotId } from '../format/names.ts'
import { lockMarks, openProcess, parentOf, startTime } from '../kernel/process.ts'
import { newChain, type PreCopyChain } from './send-round.ts'

export type TakenChain = ReturnType<ProxyChains['take']>

interface Entry {
  chain: PreCopyChain
  /** Where criu's images of the last round are; undefined while a dump works on the chain. */
  directory: string | undefined
  /** The start time of the root, by which a new process with its number is told apart. */
  start: number | undefined
  /** Stops waiting for the tree's end, and unlocks its marks. */
  release(): void
}

export class ProxyChains {
  readonly #entries = new Map<number, Entry>()
  readonly #onOver: (chain: PreCopyChain) => void

  /** `onOver` is told of each chain of rounds that no dump can continue: the cache still has those rounds. */
  constructor(onOver: (chain: PreCopyChain) => void) {
    this.#onOver = onOver
  }

  /**
   * The chain for a dump of this tree that begins now: the one whose last round left its images in `before`, or a new
   * one. Throws `EXISTS` where another process has the marks (see `lockMarks`).
   */
  take(tree: number, before: string | undefined, newId: () => SnapshotId) {
    const found = this.#entries.get(tree)
    const fits = before !== undefined && found?.directory === before && found.start === startTime(tree)
    this.#endWhere((root) => root !== tree && related(root, tree))
    if (!fits) this.#end(tree)
    const entry = this.#add(tree, this.#remove(tree)?.chain ?? newChain(newId()))
    const { chain } = entry
    return {
      chain,
      /**
       * The round is sealed, and criu's images are in `directory`: the next dump may continue, unless another one has
       * begun.
       */
      keep: (directory: string): void => {
        if (this.#entries.get(tree) === entry) entry.directory = directory
        else this.#onOver(chain)
      },
      /** The dump is over. If the chain was not kept, the marks are free again. */
      end: (): void => {
        if (this.#entries.get(tree) === entry && entry.directory === undefined) this.#remove(tree)
      },
    }
  }

  /**
   * Ends the chains of this tree, of trees that it is a part of, and of its parts: another dump of it has begun. Ends
   * all chains if the tree is not known.
   */
  breakOff(tree: number | undefined): void {
    this.#endWhere((root) => tree === undefined || related(root, tree))
  }

  /** No more dumps come. */
  close(): void {
    this.#endWhere(() => true)
  }

  #endWhere(isOver: (root: number) => boolean): void {
    for (const root of [...this.#entries.keys()]) if (isOver(root)) this.#end(root)
  }

  /** Ends the chain of a tree. A dump that works on the chain notices when it wants to keep it. */
  #end(tree: number): void {
    const found = this.#remove(tree)
    if (found?.directory !== undefined) this.#onOver(found.chain)
  }

  #remove(tree: number): Entry | undefined {
    const found = this.#entries.get(tree)
    this.#entries.delete(tree)
    found?.release()
    return found
  }

  #add(tree: number, chain: PreCopyChain): Entry {
    const unlock = lockMarks(tree)
    if (unlock === undefined) {
      if (chain.under > 0) this.#onOver(chain)
      throw marksTakenFault(tree)
    }
    const task = openProcess(tree)
    const release = (): void => {
      task?.close()
      unlock()
    }
    const entry: Entry = { chain, directory: undefined, start: startTime(tree), release }
    this.#entries.set(tree, entry)
    const onTreeEnded = (): void => {
      if (this.#entries.get(tree) === entry) this.#end(tree)
    }
    task?.ended.then(onTreeEnded, () => {})
    return entry
  }
}

function marksTakenFault(tree: number): Fault {
  return new Fault('EXISTS', `a pre-copy, or another proxy, is at work on process ${tree}, or on a part of its tree`, {
    hint: 'wait until it has ended',
  })
}

function related(one: number, other: number): boolean {
  return one === other || isBelow(one, other) || isBelow(other, one)
}

function isBelow(task: number, root: number): boolean {
  for (let parent = parentOf(task); parent !== undefined && parent > 0; parent = parentOf(parent)) {
    if (parent === root) return true
  }
  return false
}
