import { cpSync, existsSync, readFileSync, symlinkSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { fixtures, root, run, shell, temporary } from '../support/run.ts'

const test = suite('scripts/build')

interface Package {
  version: string
  bin: Record<string, string>
}

test('npm run build makes plain JavaScript that does the same', async () => {
  const { path, remove } = temporary()
  // Not in place: other tests run what is built there.
  const copy = join(path, 'checkout')
  for (const name of ['lib', 'scripts', 'package.json', 'tsconfig.json']) {
    cpSync(join(root, name), join(copy, name), { recursive: true })
  }
  symlinkSync(join(root, 'node_modules'), join(copy, 'node_modules'))
  const built = await run('npm', ['run', '--silent', 'build'], { cwd: copy })
  assert.is(built.code, 0, built.stdout.toString())
  const { version, bin } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as Package
  const names = [
    'criu-dump-to-stdout',
    'criu-flatten',
    'criu-image-cache',
    'criu-image-proxy',
    'criu-pre-copy',
    'criu-restore-from-socket',
  ]
  assert.equal(Object.keys(bin).sort(), names)
  for (const file of Object.values(bin)) {
    const said = await run(process.execPath, [join(copy, file), '--version'])
    assert.is(said.stdout.toString(), `${version}\n`, file)
  }
  const [dump, restore] = ['criu-dump-to-stdout', 'criu-restore-from-socket'].map((name) => join(copy, bin[name] ?? ''))
  const moved = await shell(`node ${dump} --from-dir ${fixtures}/images | node ${restore} --to-dir ${path}/images`)
  assert.is(moved.code, 0, moved.stderr)
  assert.ok(existsSync(join(path, 'images', 'inventory.img')))
  remove()
})

test.run()
