/** An image on its way into memory, piece after piece. */
import type { ImageEntry } from '../format/list.ts'
import type { MemoryWriter, Piece } from './memory.ts'

/** `space` gives room for the next bytes, at least one. */
export function pieceWriter(
  space: (wanted: number) => Piece,
  end: (entry: ImageEntry, pieces: Piece[]) => void,
): MemoryWriter {
  const pieces: Piece[] = []
  let last: Piece | undefined
  let filled = 0

  function close(): void {
    if (last !== undefined) pieces.push(first(last, filled))
    last = undefined
    filled = 0
  }

  return {
    room(wanted) {
      if (last !== undefined && filled === last.window.length) close()
      last ??= space(wanted)
      return last.window.subarray(filled)
    },
    wrote(bytes) {
      filled += bytes
    },
    end(entry) {
      close()
      end(entry, pieces)
    },
  }
}

export function first({ address, window }: Piece, bytes: number): Piece {
  return { address, window: window.subarray(0, bytes) }
}
