import { randomBytes } from 'node:crypto'
import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { compressor, decompress } from '../../lib/kernel/codec.ts'

const test = suite('kernel/codec')
const MIB = 2 ** 20
const text = Buffer.alloc(MIB, 'the quick brown fox jumps over the lazy dog\n')

for (const codec of ['zstd', 'lz4'] as const) {
  test(`${codec}: bytes come back, compressed at once or aside`, async () => {
    const coder = compressor(codec)
    for (const bytes of [text.subarray(0, 1), text.subarray(7, 5000), text, randomBytes(100_000)]) {
      const room = Buffer.alloc(bytes.length + 5000)
      const aside = Buffer.alloc(room.length)
      const length = coder.now(bytes, room)
      assert.is(await coder.aside(bytes, aside), length)
      assert.ok(aside.equals(room))
      const back = Buffer.alloc(bytes.length)
      assert.ok(decompress(codec, room.subarray(0, length), back))
      assert.ok(back.equals(bytes))
    }
    coder.close()
  })

  test(`${codec}: what does not fit is 0`, async () => {
    const coder = compressor(codec)
    const random = randomBytes(50_000)
    assert.is(coder.now(random, Buffer.alloc(49_999)), 0)
    assert.is(await coder.aside(random, Buffer.alloc(49_999)), 0)
    coder.close()
  })

  test(`${codec}: only so many bytes as were said`, () => {
    const coder = compressor(codec)
    const room = Buffer.alloc(5000)
    const packed = room.subarray(0, coder.now(text.subarray(0, 20_000), room))
    assert.ok(decompress(codec, packed, Buffer.alloc(20_000)))
    for (const wrong of [1, 19_999, 20_001, MIB]) assert.not(decompress(codec, packed, Buffer.alloc(wrong)), `${wrong}`)
    for (let cut = 0; cut < packed.length; cut++) {
      assert.not(decompress(codec, packed.subarray(0, cut), Buffer.alloc(20_000)), `cut at ${cut}`)
    }
    coder.close()
  })

  test(`${codec}: whatever bytes come are taken, and nothing beyond the room is touched`, () => {
    const coder = compressor(codec)
    const room = Buffer.alloc(5000)
    const good = Buffer.from(room.subarray(0, coder.now(text.subarray(0, 10_000), room)))
    const change = fc.array(fc.tuple(fc.nat(good.length - 1), fc.nat(255)), { maxLength: 6 })
    const block = Buffer.alloc(10_000 + 64, 0xaa)
    fc.assert(
      fc.property(fc.oneof(fc.uint8Array({ minLength: 1, maxLength: 200 }), change), (given) => {
        let packed = Buffer.from(good)
        if (given instanceof Uint8Array) packed = Buffer.from(given)
        else for (const [at, value] of given) packed[at] = value
        decompress(codec, packed, block.subarray(32, 10_032))
        assert.ok([block.subarray(0, 32), block.subarray(10_032)].every((edge) => edge.every((byte) => byte === 0xaa)))
      }),
      { numRuns: 1000 },
    )
    coder.close()
  })
}

test('several are at work at once', async () => {
  const coders = [compressor('zstd'), compressor('zstd'), compressor('lz4')]
  const rooms = coders.map(() => Buffer.alloc(MIB))
  const lengths = await Promise.all(coders.map((coder, index) => coder.aside(text, rooms[index] as Buffer)))
  for (const [index, length] of lengths.entries()) {
    const back = Buffer.alloc(MIB)
    assert.ok(decompress(index < 2 ? 'zstd' : 'lz4', (rooms[index] as Buffer).subarray(0, length), back))
    assert.ok(back.equals(text))
    coders[index]?.close()
  }
})

test.run()
