import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { type ImageName, imageName } from '../../lib/format/names.ts'
import * as libc from '../../lib/kernel/libc.ts'
import { MemorySnapshot } from '../../lib/store/memory.ts'
import { EXTENT, Pool } from '../../lib/store/pool.ts'
import { type StoredImage, writeInto } from '../../lib/store/stored-image.ts'
import { throwsFault } from '../expect.ts'
import { bytesOf, contents, entry } from '../stream/snapshots.ts'
import { eventually } from '../support/run.ts'

const test = suite('store/memory')

/** A writer of one image: `add` puts bytes in as the receiver does, `end` seals it. */
async function writing(sink: MemorySnapshot, name: string) {
  const writer = await sink.open(imageName(name))
  const parts: Buffer[] = []
  return {
    async add(bytes: Uint8Array) {
      for (let at = 0; at < bytes.length; ) {
        const room = writer.room(bytes.length - at)
        assert.ok(room.length > 0, 'room for one byte at least')
        const part = bytes.subarray(at, at + room.length)
        room.set(part)
        await writer.wrote(part.length)
        at += part.length
      }
      parts.push(Buffer.from(bytes))
    },
    async end() {
      await writer.end(entry(name, Buffer.concat(parts)))
    },
  }
}

async function put(sink: MemorySnapshot, name: string, bytes: Uint8Array, step = bytes.length || 1): Promise<void> {
  const image = await writing(sink, name)
  for (let at = 0; at < bytes.length; at += step) await image.add(bytes.subarray(at, at + step))
  await image.end()
}

const sizes = [
  0,
  1,
  1023,
  1024,
  1025,
  4096,
  5119,
  5120,
  65535,
  65536,
  65537,
  87040,
  EXTENT - 1,
  EXTENT,
  EXTENT + 1,
  3 * EXTENT,
]

for (const step of [1000, 4096, 2 ** 20, 4 * EXTENT]) {
  test(`images of every size in steps of ${step} come back as they were`, async () => {
    const sink = new MemorySnapshot(new Pool(100 * EXTENT))
    for (const size of sizes) await put(sink, `i${size}`, bytesOf(`i${size}`, size), step)
    const got = contents(sink)
    assert.is(got.size, sizes.length)
    for (const size of sizes) assert.ok(got.get(`i${size}`)?.equals(bytesOf(`i${size}`, size)), `${size} bytes`)
    for (const [name, image] of sink.images) {
      const { pieces, ...rest } = image
      assert.equal(rest, entry(name, bytesOf(name, image.size)))
      for (const { address, window } of pieces) {
        assert.ok(window.length > 0, 'no empty piece')
        assert.ok(Buffer.from(libc.view(address, window.length)).equals(window), 'the address is the window’s')
      }
    }
    sink.drop()
  })
}

test('images that grow in turns do not touch each other', async () => {
  const sink = new MemorySnapshot(new Pool(100 * EXTENT))
  const names = Array.from({ length: 8 }, (_, index) => `i${index}`)
  const bytes = names.map((name) => bytesOf(name, 300_000))
  const images = await Promise.all(names.map((name) => writing(sink, name)))
  for (let at = 0; at < 300_000; at += 777) {
    for (const [index, image] of images.entries())
      await image.add((bytes[index] ?? Buffer.alloc(0)).subarray(at, at + 777))
  }
  for (const image of images) await image.end()
  names.forEach((name, index) => {
    assert.ok(
      contents(sink)
        .get(name)
        ?.equals(bytes[index] ?? Buffer.alloc(0)),
      name,
    )
  })
  sink.drop()
})

test('an image is there only when it has ended', async () => {
  const sink = new MemorySnapshot(new Pool(EXTENT))
  const image = await writing(sink, 'a.img')
  await image.add(Buffer.from('abc'))
  assert.is(sink.images.size, 0)
  await image.end()
  assert.is(sink.images.size, 1)
  sink.drop()
})

test('many small images share an extent', async () => {
  const pool = new Pool(8 * EXTENT)
  const sink = new MemorySnapshot(pool)
  for (let index = 0; index < 2048; index++) await put(sink, `i${index}`, bytesOf(`i${index}`, 500))
  // What is charged for them beside, at most 2 KiB each.
  const known = sink.held - EXTENT
  assert.ok(known <= 2048 * 2048, `${known}`)
  assert.is(pool.used, sink.held)
  for (let index = 2048; index < 2500; index++) await put(sink, `i${index}`, bytesOf(`i${index}`, 500))
  assert.ok(sink.held - 2 * EXTENT <= 2500 * 2048)
  for (const [name, got] of contents(sink)) assert.ok(got.equals(bytesOf(name, 500)), name)
  sink.drop()
})

test('the limit of the pool is MEMORY, and a drop gives everything back', async () => {
  const pool = new Pool(4 * EXTENT)
  const other = new MemorySnapshot(pool)
  await put(other, 'other.img', bytesOf('other.img', 100))
  const sink = new MemorySnapshot(pool)
  const image = await writing(sink, 'pages-1.img')
  await image.add(bytesOf('pages-1.img', 2 * EXTENT))
  const writer = await sink.open(imageName('more.img'))
  throwsFault('MEMORY', () => writer.room(EXTENT))
  assert.is(sink.held, 3 * EXTENT)
  sink.drop()
  assert.is(sink.held, 0)
  assert.is(sink.images.size, 0)
  assert.is(pool.used, EXTENT)
  sink.drop()
  assert.is(pool.used, EXTENT, 'dropping twice gives nothing back twice')
  assert.ok(contents(other).get('other.img')?.equals(bytesOf('other.img', 100)), 'the other one is whole')
})

test('announced memory is made ready, up to the limit, and what is not used of it is given back', async () => {
  const pool = new Pool(8 * EXTENT)
  const sink = new MemorySnapshot(pool)
  assert.is(await sink.reserve?.(3 * EXTENT), 3 * EXTENT)
  assert.is(pool.used, 4 * EXTENT)
  const image = await writing(sink, 'pages-1.img')
  await image.add(bytesOf('pages-1.img', 2 * EXTENT))
  assert.is(pool.used, 4 * EXTENT, 'images use what is ready')
  sink.complete()
  assert.is(pool.used, 3 * EXTENT)
  const greedy = new MemorySnapshot(pool)
  assert.is(await greedy.reserve?.(100 * EXTENT), 4 * EXTENT, 'no more than there is')
  assert.is(pool.used, pool.limit)
  greedy.drop()
  assert.is(pool.used, 3 * EXTENT)
})

test('memory that was only announced gives way to the images of others', async () => {
  const pool = new Pool(8 * EXTENT)
  const greedy = new MemorySnapshot(pool)
  assert.is(await greedy.reserve(2 ** 48), 7 * EXTENT)
  const late = new MemorySnapshot(pool)
  await put(late, 'pages-1.img', bytesOf('pages-1.img', 3 * EXTENT))
  assert.is(pool.used, pool.limit)
  await put(greedy, 'pages-2.img', bytesOf('pages-2.img', 3 * EXTENT))
  throwsFault('MEMORY', () => pool.take())
  assert.ok(
    contents(late)
      .get('pages-1.img')
      ?.equals(bytesOf('pages-1.img', 3 * EXTENT)),
  )
  assert.ok(
    contents(greedy)
      .get('pages-2.img')
      ?.equals(bytesOf('pages-2.img', 3 * EXTENT)),
  )
  greedy.drop()
  assert.is(pool.used, 4 * EXTENT)
  late.drop()
  assert.is(pool.used, 0)
  assert.is(pool.spare.size, 0)
})

test('images may use what is not ready yet', async () => {
  const pool = new Pool(8 * EXTENT)
  const sink = new MemorySnapshot(pool)
  const reserved = sink.reserve(7 * EXTENT)
  const image = await writing(sink, 'pages-1.img')
  await image.add(bytesOf('pages-1.img', 7 * EXTENT))
  await image.end()
  await reserved
  assert.is(pool.used, pool.limit)
  assert.ok(
    contents(sink)
      .get('pages-1.img')
      ?.equals(bytesOf('pages-1.img', 7 * EXTENT)),
  )
  sink.drop()
  assert.is(pool.used, 0)
})

test('nothing is made ready on a machine that has no memory left', async () => {
  const pool = new Pool(8 * EXTENT, 0, () => 0)
  const sink = new MemorySnapshot(pool)
  assert.is(await sink.reserve(7 * EXTENT), 0)
  await put(sink, 'pages-1.img', bytesOf('pages-1.img', 7 * EXTENT))
  sink.drop()
})

test('a sender waits for much memory only so long; the rest becomes ready afterwards', async () => {
  const pool = new Pool(128 * EXTENT)
  const sink = new MemorySnapshot(pool)
  const ready = await sink.reserve(100 * EXTENT, 0)
  assert.ok(ready < 100 * EXTENT, `${ready}`)
  await eventually(() => pool.used === 101 * EXTENT || undefined, 'the rest')
  sink.drop()
  await eventually(() => pool.used === 0 || undefined, 'its return')
})

test('a snapshot that is dropped while memory becomes ready for it gives all back', async () => {
  const pool = new Pool(64 * EXTENT)
  const sink = new MemorySnapshot(pool)
  const reserved = sink.reserve(60 * EXTENT)
  sink.drop()
  assert.ok((await reserved) < 60 * EXTENT)
  assert.is(pool.used, 0)
})

test('pieces of a dropped image read zeros', async () => {
  const sink = new MemorySnapshot(new Pool(EXTENT))
  await put(sink, 'a.img', Buffer.from('secret'))
  const [image] = sink.images.values() as Iterable<StoredImage>
  const [piece] = image?.pieces ?? []
  sink.drop()
  assert.equal([...(piece?.window ?? [])], [0, 0, 0, 0, 0, 0])
})

test('empty images are charged', () => {
  for (const apart of [false, true]) {
    const pool = new Pool(64 * EXTENT)
    const sink = new MemorySnapshot(pool, apart)
    const open = (word: string, count: number): void => {
      for (let at = 0; at < count; at++) {
        const name = `${word}-${at}.img` as ImageName
        sink.open(name).end({ name, size: 0, digest: 0n })
      }
    }
    open('pages', 50)
    assert.is(pool.used, EXTENT, 'as many as others have')
    open('pages', 10_000)
    const used = pool.used
    assert.ok(used >= EXTENT + 9000 * (apart ? 4096 : 512), `${used}`)
    assert.is(sink.held, used)
    sink.reopen()
    open('pages', 10_000)
    assert.is(pool.used, used, 'what is forgotten is paid')
    throwsFault('MEMORY', () => open('core', 300_000))
    sink.drop()
    assert.is(pool.used, 0)
  }
})

test('a tree of small processes takes the memory of its pages, and not 2 MiB for each process', () => {
  for (const apart of [false, true]) {
    const pool = new Pool(2 ** 30)
    const sink = new MemorySnapshot(pool, apart)
    const bytes = 200 * 1024
    for (let at = 1; at <= 100; at++) {
      const name = imageName(`pages-${at}.img`)
      const writer = sink.open(name)
      writeInto(writer, Buffer.alloc(bytes, at))
      writer.end({ name, size: bytes, digest: 0n })
    }
    assert.ok(pool.used <= 1.1 * 100 * bytes + EXTENT, `${pool.used}`)
    assert.is(sink.held, pool.used)
    for (let at = 1; at <= 100; at++) {
      const [...pieces] = sink.images.get(imageName(`pages-${at}.img`))?.pieces ?? []
      assert.ok(Buffer.concat(pieces.map(({ window }) => window)).equals(Buffer.alloc(bytes, at)), `${at}`)
    }
    sink.drop()
    assert.is(pool.used, 0)
  }
})

test('bytes that come while their snapshot is dropped go into no memory of others', async () => {
  for (const apart of [false, true]) {
    const pool = new Pool(4 * EXTENT)
    const dropped = new MemorySnapshot(pool, apart)
    const name = imageName('pages-1.img')
    const [writer, complete] = [dropped.open(name), dropped.open(imageName('complete.img'))]
    complete.room(1).fill(1)
    complete.wrote(1)
    const late = writer.room(EXTENT)
    dropped.drop()
    assert.is(pool.used, 0)
    const others = Array.from({ length: 4 }, () => pool.take())
    for (const { window } of others) window.fill(7)
    late.fill(9)
    for (const { window } of others) assert.not(window.includes(9))
    // Nothing more comes: the extent that was kept from others is free, and there is enough for all.
    dropped.drop()
    for (const extent of others) pool.give(extent)
    throwsFault('ABORTED', () => writer.room(1))
    throwsFault('ABORTED', () => writer.wrote(1))
    throwsFault('ABORTED', () => complete.end(entry('complete.img', bytesOf('x', 1))))
    throwsFault('ABORTED', () => dropped.open(name))
    assert.is(pool.used, 0)
  }
})

test('the heap that images take beside their bytes is bounded, and given back', () => {
  const pool = new Pool(100 * EXTENT, 0, undefined, 2 ** 20)
  const many = (sink: MemorySnapshot, count: number): void => {
    for (let at = 0; at < count; at++) sink.open(imageName(`i${at}`)).end(entry(`i${at}`, bytesOf('', 0)))
  }
  const first = new MemorySnapshot(pool)
  many(first, 500)
  const second = new MemorySnapshot(pool)
  throwsFault('MEMORY', () => many(second, 1000))
  first.drop()
  second.drop()
  const third = new MemorySnapshot(pool)
  many(third, 500)
  third.drop()
  assert.is(pool.used, 0)
})

test.run()
