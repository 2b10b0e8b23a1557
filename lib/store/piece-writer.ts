/** An image on its way into memory, piece after piece. */
import type { ImageEntry } from '../format/image-list.ts'
import type { MemoryWriter, Piece } from './stored-image.ts'

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

export function behind({ address, window }: Piece, bytes: number): Piece {
  return { address: address + BigInt(bytes), window: window.subarray(bytes) }
}

/** Bytes that lie somewhere else, into an image. */
export function writeInto(writer: MemoryWriter, bytes: Uint8Array): void {
  for (let at = 0; at < bytes.length; ) {
    const room = writer.room(bytes.length - at)
    const part = bytes.subarray(at, at + room.length)
    room.set(part)
    writer.wrote(part.length)
    at += part.length
  }
}
