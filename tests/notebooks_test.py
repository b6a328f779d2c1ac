"""Tests of the notebooks of examples/: they hold no results, name nothing that is not promised, and run as they are."""

import ast
import pathlib
import re

import nbclient
import nbformat
import pytest

import tf_dpdiff

FOLDER = pathlib.Path(__file__).resolve().parent.parent / 'examples' / 'notebooks'
NOTEBOOKS = sorted(FOLDER.glob('*.ipynb'))
each = pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)


def code_of(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == 'code']


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS] == ['own_images']


@each
def test_notebook_is_valid_and_holds_no_results_and_no_path_of_a_machine(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get('outputs') or cell.get('execution_count') for cell in notebook.cells)
    assert not re.search(r'/(home|root|Users|work|tmp)/', path.read_text())
    assert set(notebook.metadata) == {'kernelspec', 'language_info'}


@each
def test_notebook_uses_what_the_library_promises_and_no_more(path):
    names = set()
    for source in code_of(nbformat.read(path, as_version=4)):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == 'tf_dpdiff':
                names.add(node.attr)
            assert not (isinstance(node, ast.ImportFrom) and (node.module or '').startswith('tf_dpdiff'))
    assert names and names <= set(tf_dpdiff.__all__)


@pytest.mark.long
@each
def test_notebook_runs_as_it_is(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=1800, kernel_name='python3', resources={'metadata': {'path': tmp_path}}
    ).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == 'code' for output in cell.outputs]
    said = ''.join(output.text for output in outputs if output.output_type == 'stream' and output.name == 'stdout')
    pictures = [output for output in outputs if 'image/png' in output.get('data', {})]
    run = tf_dpdiff.Run(tmp_path / 'runs' / 'own_images')
    assert run.statement.text in said and run.statement.epsilon <= 10.0
    assert len(pictures) == 2
    synthetic, real = (float(found) for found in re.findall(r'([\d.]+)% \(not to be released\)', said))
    assert 70.0 < synthetic < real
    released = {item.name for item in (tmp_path / 'runs' / 'own_images_released').iterdir()}
    assert {'privacy_statement.txt', 'saved_model', 'samples.npz'} <= released
    assert not released & {'checkpoints', 'non_private', 'operative_config.gin'}
