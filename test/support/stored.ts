/** Images that lie in memory, as a snapshot that has arrived. */
import { imageName } from '../../lib/format/names.ts'
import { MemorySnapshot } from '../../lib/store/memory.ts'
import type { Pool } from '../../lib/store/pool.ts'

/** Writes the images into memory of `pool`. Their digests are not looked at. */
export async function stored(pool: Pool, images: Record<string, Buffer>): Promise<MemorySnapshot> {
  const snapshot = new MemorySnapshot(pool)
  for (const [name, bytes] of Object.entries(images)) {
    const writer = snapshot.open(imageName(name))
    for (let done = 0; done < bytes.length; ) {
      const room = writer.room(bytes.length - done)
      const part = bytes.subarray(done, done + room.length)
      room.set(part)
      await writer.wrote(part.length)
      done += part.length
    }
    await writer.end({ name: imageName(name), size: bytes.length, digest: 0n })
  }
  return snapshot
}
