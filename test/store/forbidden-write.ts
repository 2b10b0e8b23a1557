/** Run by a test: writes where nobody may, which ends the process. */
import { imageName } from '../../lib/format/names.ts'
import { MemorySnapshot } from '../../lib/store/memory.ts'
import { Pool } from '../../lib/store/pool.ts'
import { writeInto } from '../../lib/store/stored-image.ts'

const pool = new Pool(2 ** 24)
const sink = new MemorySnapshot(pool)
const name = imageName('a.img')
const writer = sink.open(name)
const room = writer.room(1)
writeInto(writer, Buffer.from('an image'))
writer.end({ name, size: 8, digest: 0n })
const [piece] = sink.images.get(name)?.pieces ?? []
for (const _ of sink.protect());
if (Buffer.from(piece?.window ?? []).toString() !== 'an image') throw new Error('it cannot be read')
const windows: Record<string, Uint8Array | undefined> = {
  'an image': piece?.window,
  'a window that is still held': room,
  zeros: pool.window(pool.zeros, 4096),
}
process.stdout.write('about to write\n')
windows[process.argv[2] ?? '']?.fill(7)
process.stdout.write('it was written\n')
