import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { ReplayBuffer } from '../../lib/stream/replay-buffer.ts'
import { bytesOf } from './snapshots.ts'

const test = suite('stream/replay-buffer')

test('a replay buffer gives back what was put in, wherever it begins and however it grows', () => {
  const step = fc.record({
    bytes: fc.nat(200_000),
    forget: fc.double({ min: 0, max: 1, noNaN: true }),
    inPlace: fc.boolean(),
  })
  /** Puts bytes in place, behind a head, as far as one room goes. */
  const put = (replay: ReplayBuffer, bytes: Buffer): number => {
    const [head, body] = [bytes.subarray(0, 24), bytes.subarray(24)]
    const room = replay.room(24, body.length)
    assert.ok(room.length <= body.length)
    if (room.length === 0) return 0
    room.set(body.subarray(0, room.length))
    replay.commit(head, room.length)
    return 24 + room.length
  }
  fc.assert(
    fc.property(fc.array(step, { maxLength: 12 }), (steps) => {
      const replay = new ReplayBuffer(2 ** 18)
      let model = Buffer.alloc(0)
      for (const [turn, { bytes, forget, inPlace }] of steps.entries()) {
        const next = bytesOf(String(turn), bytes)
        const free = 2 ** 18 - (model.length - replay.from)
        const placed = inPlace && bytes > 24
        const fits = placed ? put(replay, next) : replay.append(next)
        if (!placed) assert.is(fits, Math.min(bytes, free))
        else assert.is(fits > 0, free > 24, `${free} bytes were free`)
        model = Buffer.concat([model, next.subarray(0, fits)])
        assert.is(replay.to, model.length)
        const parts: Uint8Array[] = []
        for (let at = replay.from; at < replay.to; at += (parts.at(-1) as Uint8Array).length) {
          parts.push(Buffer.from(replay.at(at, 50_000)))
        }
        assert.ok(Buffer.concat(parts).equals(model.subarray(replay.from)))
        replay.forget(replay.from + Math.floor((replay.to - replay.from) * forget))
      }
    }),
    { numRuns: 100 },
  )
})

test.run()
